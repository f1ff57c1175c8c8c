"""Warns, while training goes on, of a coder whose latents all fall silent or all fire."""

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

# Steps from one look to the next: each makes a GPU wait.
EVERY = 100
# A latent active on more than this share of the tokens is nearly always on, and tells little: one
# that is on half of the time tells most. Where so many latents are dead, the rest are a much
# smaller coder.
MOST = 0.9


class CollapseWatch:
    """Logs a warning when a coder collapses, and one when it has recovered."""

    def __init__(self) -> None:
        self._collapsed = False

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether a step is one to look at: every hundredth."""
        return step > 0 and step % EVERY == 0

    def check(self, rates: Tensor, dead: Tensor | None, step: int) -> None:
        """Look at a step; reads on the host.

        Args:
            rates: [latents], firing rates of the step's batch.
            dead: bool [latents], those that have not fired for long, or None where that is not
                known.
            step: number of the training step.
        """
        what = _collapse(rates, dead)
        if what and not self._collapsed:
            logger.warning("Training step %d: %s", step, what)
        if self._collapsed and not what:
            logger.warning("Training step %d: the latents' firing has recovered.", step)
        self._collapsed = bool(what)


def _collapse(rates: Tensor, dead: Tensor | None) -> str:
    """What is wrong with the firing rates, and what to try; empty where nothing is."""
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
