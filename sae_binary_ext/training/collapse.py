"""Warns during training if nearly all latents of a coder stop firing, or fire all the time."""

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

# Steps between two checks, each of which makes a GPU wait.
EVERY = 100
# A latent that fires on more than this share of the tokens tells little. A coder with more than
# this share of dead latents is a much smaller coder.
MOST = 0.9


class CollapseWatch:
    """Logs a warning when a coder collapses, and one when it has recovered."""

    def __init__(self) -> None:
        self._collapsed = False

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether to check this step: every hundredth."""
        return step > 0 and step % EVERY == 0

    def check(self, rates: Tensor, dead: Tensor | None, step: int) -> None:
        """Check a step; a GPU waits for it.

        Args:
            rates: [latents], firing rates of the step's batch.
            dead: bool [latents], the latents that have not fired for long; None if unknown.
            step: number of the training step.
        """
        what = _collapse(rates, dead)
        if what and not self._collapsed:
            logger.warning("Training step %d: %s", step, what)
        if self._collapsed and not what:
            logger.warning("Training step %d: the latents' firing has recovered.", step)
        self._collapsed = bool(what)


def _collapse(rates: Tensor, dead: Tensor | None) -> str:
    """What is wrong with the firing rates and what to try; empty if nothing is wrong."""
    active = rates.sum().item()
    if active < 1:
        return (
            f"{active:.2g} of {len(rates)} latents are active a token, fewer than one. Lower the "
            "entropy loss's weight or the learning rate, or start at a higher "
            "initial_firing_rate."
        )
    always = (rates > MOST).float().mean().item()
    if always > 0.5:
        return (
            f"{always:.0%} of the latents are active on more than nine of ten tokens. Raise the "
            "entropy loss's weight, or choose topk."
        )
    silent = 0.0 if dead is None else dead.float().mean().item()
    if silent > MOST:
        return (
            f"{silent:.0%} of the latents are dead. Lower the learning rate, scale the inputs, or "
            "raise the weight of the loss on dead latents."
        )
    return ""
