"""Finds non-finite values in training without making a GPU wait, or leaves them out."""

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

logger = logging.getLogger(__name__)


class FiniteWatch:
    """Raises an error soon after a training step with NaN or infinite values.

    On the CPU the step itself raises. On a GPU no step waits: each starts a copy of one flag to the
    host, and reads the flag of an earlier step whose copy has ended. The error then comes a few
    steps late and names the step it belongs to.

    Args:
        error_of: makes the error from a step's number; None for the error about activations.
    """

    def __init__(self, error_of: Callable[[int], ValueError] | None = None) -> None:
        self._error_of = error_of or non_finite_activations
        # int64 scalar on the GPU: the first bad step, or -1.
        self._first_bad_step: Tensor | None = None
        self._in_flight: tuple[Tensor, torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> "FiniteWatch":
        return FiniteWatch(self._error_of)

    def check(self, values: Tensor, step: int) -> None:
        """Look at the activations of a training step, any shape.

        Raises:
            ValueError: these values, or on a GPU those of an earlier step, are not all finite.
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
        """Wait for all steps so far. Call it before a save, which must not keep spoilt weights."""
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
    """Finds the finite tokens of a batch, so that training can leave the others out.

    Attributes:
        skipped: how many tokens were left out so far.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._next_warning = 1

    def of(self, *values: Tensor, step: int) -> Tensor | None:
        """The finite tokens of a batch, bool [tokens]; None if all are finite. A GPU waits for it.

        Args:
            values: [tokens, ...] each; a token is finite if it is finite in all of them.
            step: number of the training step, for the messages.

        Raises:
            ValueError: no token is finite.
        """
        if all(_all_finite(array) for array in values):
            return None
        finite = torch.stack([_finite_rows(array) for array in values]).all(0)
        if not finite.any():
            raise non_finite_activations(step)
        self.skipped += int((~finite).sum().item())
        # Warn each time the number has doubled: a model that overflows does so in every batch.
        if self.skipped >= self._next_warning:
            self._next_warning = 2 * self.skipped
            logger.warning(
                "Training step %d: %d tokens so far had NaN or infinite activations and were left "
                "out.",
                step,
                self.skipped,
            )
        return finite


class FiniteBatches(Iterator[Tensor]):
    """Batches for an estimate, without the tokens that are not finite.

    Args:
        batches: yields [tokens, ...], all values of a token in its row.
        estimate: names the estimate in errors.
        skip: whether to leave out tokens that are not finite, instead of stopping.
        count: how many batches the estimate reads.
        needed: the fewest tokens that the estimate takes.

    Attributes:
        tokens: how many tokens were passed on so far.
        skipped: how many were left out.
    """

    def __init__(
        self, batches: Iterator[Tensor], estimate: str, *, skip: bool, count: int, needed: int = 1
    ) -> None:
        self._batches = batches
        self._estimate = estimate
        self._skip = skip
        self._count = count
        self._needed = needed
        self._read = 0
        self.tokens = 0
        self.skipped = 0

    @override
    def __next__(self) -> Tensor:
        """The next batch, [tokens, ...], float32 or its wider dtype; it may have no tokens.

        Raises:
            ValueError: it is not finite and such tokens are not skipped; or it is the last batch
                and there were too few tokens.
        """
        batch = next(self._batches)
        # float16 has no room for a norm.
        batch = batch.to(torch.promote_types(batch.dtype, torch.float32))
        self._read += 1
        if not _all_finite(batch):
            if not self._skip:
                raise ValueError(
                    f"The estimate of {self._estimate} read NaN or infinite activations in its "
                    f"batch {self._read}. Look at the model's dtype (float16 overflows where "
                    "bfloat16 does not), or leave such tokens out with skip_non_finite=True."
                )
            finite = _finite_rows(batch)
            self.skipped += int((~finite).sum().item())
            batch = batch[finite]
        self.tokens += len(batch)
        if self._read == self._count:
            self._check_tokens()
        return batch

    def _check_tokens(self) -> None:
        if self.tokens < self._needed:
            raise ValueError(
                f"The estimate of {self._estimate} had {self.tokens} tokens with finite "
                f"activations in {self._read} batches, and needs {self._needed}. Give it more "
                "batches (n_batches_for_norm_estimate), or look at the model's dtype."
            )
        if self.skipped:
            logger.warning(
                "The estimate of %s left out %d tokens with NaN or infinite activations.",
                self._estimate,
                self.skipped,
            )


def check_parameters(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse to save a coder with NaN or infinite values; a GPU waits for it.

    Args:
        parameters: names and values of any shape. A log_threshold may be -inf, which is a threshold
            of zero.

    Raises:
        ValueError: it names each parameter with a value that is NaN or infinite.
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
    """Raise ValueError if values, any shape, hold NaN or infinity; a GPU waits for it."""
    if not _all_finite(values):
        raise ValueError(
            "The input holds NaN or infinite values. Look at the model's dtype (float16 overflows "
            "where bfloat16 does not) and at the text it ran on."
        )


def _all_finite(values: Tensor) -> Tensor:
    """Bool scalar, in one pass: both extremes are NaN if any value is."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.stack(values.aminmax()).isfinite().all()


def _finite_rows(values: Tensor) -> Tensor:
    """Bool [tokens] of [tokens, ...]."""
    return values.flatten(1).isfinite().all(-1)


def non_finite_activations(step: int) -> ValueError:
    """The error of a training step whose activations cannot be trained on."""
    return ValueError(
        f"Training step {step} received NaN or infinite activations, or a token of norm 0 under "
        "constant_norm_rescale. Look at the model's dtype (float16 overflows where bfloat16 does "
        "not) and at the batch of that step. To leave such tokens out, set skip_non_finite=True."
    )


def non_finite_loss(step: int) -> ValueError:
    """The error of a training step whose activations are finite and whose loss is not."""
    return ValueError(
        f"Training step {step} has a loss that is NaN or infinite. Look at how large the "
        "activations of its batch are, scale them (normalize_activations), or lower the learning "
        "rate, and go on from the last checkpoint."
    )
