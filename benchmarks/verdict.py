"""Says which entry of processor.PATHS the times on a GPU ask for."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from sae_binary_ext.coding.kernels.processor import Paths

# A kernel must take at most this share of torch's time, since a change must be worth its risk.
WORTH = 0.95
# A kernel's error may be this many times that of torch. Both are shares of the exact result's norm.
MOST_ERROR = 2.0
# Exact results have an error of 0; float32 sums in another order differ by about this share.
ROUNDING = 1e-6
# The index form is never taken if it is slower at every number of latents.
NEVER = 2**31


@dataclass(frozen=True)
class KernelTime:
    """A Triton kernel beside torch at one size; errors are shares of the exact result's norm."""

    name: str
    ratio: float
    error: float
    torch_error: float

    def is_right(self) -> bool:
        """Whether the kernel's result is as close to the exact one as torch's."""
        return self.error <= MOST_ERROR * self.torch_error + ROUNDING


@dataclass(frozen=True)
class FormTime:
    """A training step in index form, and its time divided by that of the dense form."""

    latents_a_learner: float
    ratio: float


def verdict(kernels: Iterable[KernelTime], forms: Iterable[FormTime]) -> Paths:
    """The entry for the measured device.

    A kernel is taken if its results are right at each size, and if the median of its ratios over
    the sizes is at most WORTH. The index form is taken from the number of latents a learner on at
    which it was faster, and at every larger number too. Ratios at equal numbers count as their
    median.
    """
    by_name: dict[str, list[KernelTime]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
    taken = frozenset(
        name
        for name, times in by_name.items()
        if all(each.is_right() for each in times)
        and statistics.median(each.ratio for each in times) <= WORTH
    )
    return Paths(_least_latents(forms), taken)


def _least_latents(forms: Iterable[FormTime]) -> int:
    by_number: dict[float, list[float]] = {}
    for form in forms:
        by_number.setdefault(form.latents_a_learner, []).append(form.ratio)
    least = NEVER
    for number in sorted(by_number, reverse=True):
        if statistics.median(by_number[number]) > 1:
            break
        least = int(number)
    return least
