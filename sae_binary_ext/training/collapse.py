"""Warns during training if nearly all latents of a coder are dead, or nearly all always fire."""

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

EVERY = 100  # steps between two checks, because a check makes a GPU wait
# A latent that fires more often than this carries little information. A coder with a larger share
# of dead latents than this is in effect a much smaller coder.
MOST = 0.9


class CollapseWatch:
    """Logs one warning when a coder collapses, and one when it has recovered."""

    def __init__(self) -> None:
        self._collapsed = False

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether to check this step; every hundredth step is checked."""
        return step > 0 and step % EVERY == 0

    def check(self, rates: Tensor, dead: Tensor | None, step: int) -> None:
        """Check the firing rates [latents] of a step's batch, and its dead latents, bool [latents].

        dead is None if the trainer does not know the dead latents. The check makes a GPU wait.
        """
        fault = _collapse(rates, dead)
        if fault and not self._collapsed:
            logger.warning("Training step %d: %s", step, fault)
        if self._collapsed and not fault:
            logger.warning("Training step %d: the latents' firing has recovered.", step)
        self._collapsed = bool(fault)


def _collapse(rates: Tensor, dead: Tensor | None) -> str:
    """The text of the warning: the fault and what to try. Empty if there is no fault."""
    active = rates.sum().item()
    if active < 1:
        return (
            f"{active:.2g} of {len(rates)} latents are active on a token on average, fewer than "
            "one. Lower the weight of the entropy loss or the learning rate, or start with a "
            "higher initial_firing_rate."
        )
    always = (rates > MOST).float().mean().item()
    if always > 0.5:
        return (
            f"{always:.0%} of the latents are active on more than nine of ten tokens. Raise the "
            "weight of the entropy loss, or set selection to topk."
        )
    silent = 0.0 if dead is None else dead.float().mean().item()
    if silent > MOST:
        return (
            f"{silent:.0%} of the latents are dead. Lower the learning rate, scale the inputs, or "
            "raise the weight of the loss on dead latents."
        )
    return ""
