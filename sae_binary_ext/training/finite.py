"""Finds NaN and infinite values in training without waiting for the GPU, and can skip them."""

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class FiniteWatch:
    """Raises an error soon after a training step with NaN or infinite values.

    On the CPU the bad step itself raises the error. On a GPU no step waits: each step starts to
    copy one flag to the host, and reads the flag of an earlier step whose copy is done. The error
    comes a few steps late and names the bad step. error_of makes the error from a step's number;
    None makes the error about activations.
    """

    def __init__(self, error_of: Callable[[int], ValueError] | None = None) -> None:
        self._error_of = error_of or non_finite_activations
        # int64 scalar on the GPU: the first bad step, or -1.
        self._first_bad_step: Tensor | None = None
        self._in_flight: tuple[Tensor, torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> "FiniteWatch":
        return FiniteWatch(self._error_of)

    def check(self, values: Tensor, step: int) -> None:
        """Check the values of a training step, any shape.

        Raises:
            ValueError: a value of this step, or on a GPU of an earlier step, is not finite.
        """
        finite = _all_finite(values)
        if not values.is_cuda:
            if not finite:
                raise self._error_of(step)
            return
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=values.device)
        newly_bad = ~finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(newly_bad, step, self._first_bad_step)
        self._poll(self._first_bad_step)

    def check_now(self) -> None:
        """Wait for the checks of all steps so far; call this before saving weights."""
        if self._first_bad_step is not None:
            self._raise_if_bad(self._first_bad_step)

    def _poll(self, first_bad_step: Tensor) -> None:
        if self._in_flight is not None:
            copy, done = self._in_flight
            if not done.query():
                return
            self._raise_if_bad(copy)
        copy = torch.empty((), dtype=torch.int64, pin_memory=True)
        copy.copy_(first_bad_step, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._in_flight = (copy, done)

    def _raise_if_bad(self, first_bad_step: Tensor) -> None:
        step = int(first_bad_step.item())
        if step >= 0:
            raise self._error_of(step)


class FiniteRows:
    """Finds the finite tokens of each batch, and counts the others in skipped."""

    def __init__(self) -> None:
        self.skipped = 0
        self._next_warning = 1

    def of(self, *values: Tensor, step: int) -> Tensor | None:
        """The finite tokens of a batch, bool [tokens]; None if all are finite. A GPU must wait.

        Each of values is [tokens, ...]. A token is finite if all its values in all arrays are
        finite.

        Raises:
            ValueError: no token is finite; the error names the training step.
        """
        if all(_all_finite(array) for array in values):
            return None
        finite = torch.stack([array.flatten(1).isfinite().all(-1) for array in values]).all(0)
        if not finite.any():
            raise non_finite_activations(step)
        self.skipped += int((~finite).sum().item())
        # Warn each time the number has doubled: a model that overflows does so in every batch.
        if self.skipped >= self._next_warning:
            self._next_warning = 2 * self.skipped
            logger.warning(
                "Training step %d: %d tokens with NaN or infinite activations were left out so "
                "far.",
                step,
                self.skipped,
            )
        return finite


def finite_tokens(
    batches: Iterator[Tensor], estimate: str, *, skip: bool, count: int, needed: int = 1
) -> Iterator[Tensor]:
    """Batches for an estimate, in float32 or wider, without the tokens that are not finite.

    Args:
        batches: yields [tokens, ...].
        estimate: names the estimate in errors.
        skip: leave out tokens that are not finite, instead of stopping. A batch may become empty.
        count: number of batches that the estimate reads.
        needed: the minimum number of tokens for the estimate.

    Raises:
        ValueError: a token is not finite and skip is False, or too few tokens are left.
    """
    tokens = skipped = 0
    for number, batch in enumerate(batches, start=1):
        # Convert to float32, since a norm can overflow in float16.
        kept = batch.to(torch.promote_types(batch.dtype, torch.float32))
        if not _all_finite(kept):
            if not skip:
                raise ValueError(
                    f"The estimate of {estimate} read NaN or infinite activations in its batch "
                    f"{number}. Look at the model's dtype (float16 overflows where bfloat16 does "
                    "not), or leave out such tokens with skip_non_finite=True."
                )
            kept = kept[kept.flatten(1).isfinite().all(-1)]
        tokens += len(kept)
        skipped += len(batch) - len(kept)
        if number == count and tokens < needed:
            raise ValueError(
                f"The estimate of {estimate} had {tokens} tokens with finite activations in "
                f"{count} batches, and needs {needed}. Give it more batches "
                "(n_batches_for_norm_estimate), or look at the model's dtype."
            )
        if number == count and skipped:
            text = "The estimate of %s left out %d tokens with NaN or infinite activations."
            logger.warning(text, estimate, skipped)
        yield kept


def check_parameters(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise an error for a coder with NaN or infinite values, before a save (a GPU waits).

    Args:
        parameters: names and values, any shape. -inf in log_threshold (threshold 0) is allowed.

    Raises:
        ValueError: a parameter is not finite. The error names each bad parameter.
    """
    spoilt = [name for name, values in parameters if not _may_be_saved(name, values.detach())]
    if spoilt:
        raise ValueError(
            f"The coder is not saved: {', '.join(spoilt)} holds NaN or infinite values, so "
            "training has diverged. Go on from the last checkpoint, with a lower learning rate or "
            "in float32, and look at the activations."
        )


def _may_be_saved(name: str, values: Tensor) -> bool:
    if not values.is_floating_point() or values.is_meta:
        return True
    if name.rpartition(".")[2] == "log_threshold":
        values = values.clamp_min(torch.finfo(values.dtype).min)
    return bool(_all_finite(values))


def check_finite(values: Tensor) -> None:
    """Raise ValueError if values, any shape, hold NaN or infinity. The check makes a GPU wait."""
    if not _all_finite(values):
        raise ValueError(
            "The input holds NaN or infinite values. Look at the model's dtype (float16 overflows "
            "where bfloat16 does not) and at the text it ran on."
        )


def _all_finite(values: Tensor) -> Tensor:
    """Whether all values are finite, a bool scalar; aminmax returns NaN if any value is NaN."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.stack(values.aminmax()).isfinite().all()


def non_finite_activations(step: int) -> ValueError:
    """The error for a step with activations that a coder cannot learn from."""
    return ValueError(
        f"Training step {step} received NaN or infinite activations, or a token of norm 0 under "
        "constant_norm_rescale. Look at the model's dtype (float16 overflows where bfloat16 does "
        "not) and at the batch of that step. To leave such tokens out, set skip_non_finite=True."
    )


def non_finite_loss(step: int) -> ValueError:
    """The error for a step with finite activations and a loss that is not finite."""
    return ValueError(
        f"Training step {step} has a loss that is NaN or infinite. Look at how large the "
        "activations of its batch are, scale them (normalize_activations), or lower the learning "
        "rate, and go on from the last checkpoint."
    )
