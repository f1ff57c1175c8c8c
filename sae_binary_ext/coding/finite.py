"""Notices non-finite values in training without making a GPU wait, or leaves them out."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class FiniteWatch:
    """Raises soon after a training step saw NaN or infinite values.

    On the CPU the error comes in the step itself. On a GPU each step only starts a copy of one
    flag to the host and reads the flag of an earlier step whose copy has ended, so the error comes
    a few steps late, names the step it belongs to, and no step waits.
    """

    def __init__(self) -> None:
        # int64 scalar on the GPU: the first bad step, -1 while all is well.
        self._first_bad_step: Tensor | None = None
        self._in_flight: tuple[Tensor, torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> "FiniteWatch":
        return FiniteWatch()

    def check(self, values: Tensor, step: int) -> None:
        """Look at a step's values.

        Args:
            values: any shape; the activations the coder trains on.
            step: number of the training step, for the message.

        Raises:
            ValueError: these values, or on a GPU those of an earlier step, are not all finite.
        """
        finite = _all_finite(values)
        if not values.is_cuda:
            if not finite:
                raise _error(step)
            return
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=values.device)
        newly_bad = ~finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(newly_bad, step, self._first_bad_step)
        self._poll(self._first_bad_step)

    def check_now(self) -> None:
        """Wait for all steps so far; call before a save, which must not keep spoilt weights."""
        if self._first_bad_step is not None:
            step = int(self._first_bad_step.item())
            if step >= 0:
                raise _error(step)

    def _poll(self, first_bad_step: Tensor) -> None:
        if self._in_flight is not None:
            copy, done = self._in_flight
            if not done.query():
                return
            if copy.item() >= 0:
                raise _error(int(copy.item()))
        copy = torch.empty((), dtype=torch.int64, pin_memory=True)
        copy.copy_(first_bad_step, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._in_flight = (copy, done)


class FiniteRows:
    """Finds the tokens of a batch that can be trained on where others are not finite.

    Attributes:
        skipped: how many tokens were left out so far.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._next_warning = 1

    def of(self, *values: Tensor, step: int) -> Tensor | None:
        """The finite tokens of a batch; reads on the host, so a GPU waits.

        Args:
            values: [tokens, ...] each; a token is finite where it is in all of them.
            step: number of the training step, for the messages.

        Returns:
            bool [tokens], or None where all are finite.

        Raises:
            ValueError: no token is finite.
        """
        if all(_all_finite(array) for array in values):
            return None
        finite = torch.stack([array.flatten(1).isfinite().all(-1) for array in values]).all(0)
        if not finite.any():
            raise _error(step)
        self.skipped += int((~finite).sum().item())
        # As often as their number doubles: a model that overflows does so in every batch.
        if self.skipped >= self._next_warning:
            self._next_warning = 2 * self.skipped
            logger.warning(
                "Training step %d: %d tokens so far had NaN or infinite activations and were left "
                "out.",
                step,
                self.skipped,
            )
        return finite


def check_finite(values: Tensor) -> None:
    """Raise ValueError where values, any shape, hold NaN or infinity; waits for a GPU."""
    if not _all_finite(values):
        raise ValueError(
            "The input holds NaN or infinite values. Look at the model's dtype (float16 overflows "
            "where bfloat16 does not) and at the text it ran on."
        )


def _all_finite(values: Tensor) -> Tensor:
    """Bool scalar, in one pass: both extremes are NaN where any value is."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.stack(values.aminmax()).isfinite().all()


def _error(step: int) -> ValueError:
    return ValueError(
        f"Training step {step} received NaN or infinite activations. Look at the model's dtype "
        "(float16 overflows where bfloat16 does not) and at the batch of that step."
    )
