"""Compares our Triton kernels with their torch twins: results, and times on a GPU.

Usage: python -m benchmarks.gpu prints these tables too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import triton.testing
from torch import Tensor

from benchmarks.hosts import WIDTH
from benchmarks.measure import median_seconds, repeat
from benchmarks.verdict import KernelTime
from sae_binary_ext.coding import CodeRule, pack
from sae_binary_ext.coding.forms.margins import pick_above
from sae_binary_ext.coding.kernels import Picks
from sae_binary_ext.coding.kernels import triton as kernels

COLUMNS = (
    "product",
    "latents",
    "tokens",
    "k",
    "kernel, ms",
    "torch, ms",
    "ratio",
    "least, ms",
    "kernel's error",
    "torch's error",
)
# Number of latents in a block of covariances.
BLOCK = 2048


@dataclass(frozen=True)
class Case:
    """A product that a Triton kernel, torch and an exact reference compute.

    Attributes:
        name: name of the product.
        kernel: computes it with our Triton kernel.
        twin: computes it with torch.
        exact: computes it in float64 or in whole numbers.
        moved: bytes, if each operand is read once and the result is written once.
    """

    name: str
    kernel: Callable[[], Tensor]
    twin: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    moved: int

    @property
    def switched(self) -> bool:
        """Whether an entry of processor.PATHS can name the kernel. No coder takes the others."""
        return self.name not in ("covariance_signs", "signed_sums")


@dataclass(frozen=True)
class Measured:
    """A kernel and torch on one product: milliseconds, and errors as shares of the exact norm."""

    case: Case
    ours: float
    theirs: float
    error: float
    torch_error: float

    def time(self) -> KernelTime:
        """What the verdict reads."""
        return KernelTime(self.case.name, self.ours / self.theirs, self.error, self.torch_error)

    def cells(self, bandwidth: float) -> tuple[str, ...]:
        """Table cells; bandwidth is the bytes per second that a copy reads and writes."""
        times = f"{self.ours:.3f}", f"{self.theirs:.3f}", f"**{self.ours / self.theirs:.2f}**"
        least = f"{1e3 * self.case.moved / bandwidth:.3f}"
        return *times, least, f"{self.error:.0e}", f"{self.torch_error:.0e}"


def measure_kernels(latents: int, tokens: int, k: int, device: str) -> Iterator[Measured]:
    """Measure each product.

    Args:
        latents: number of latents of the coder, whose inputs have WIDTH dimensions.
        tokens: number of tokens in a batch.
        k: active latents per token.
        device: torch's name of the device.
    """
    with torch.device(device):
        torch.manual_seed(0)
        cases = [*_sums(latents, tokens, k), *_codes(latents, tokens, k)]
    for case in cases:
        ours, theirs = (_milliseconds(made, device) for made in (case.kernel, case.twin))
        exact = case.exact()
        errors = (_error(made(), exact) for made in (case.kernel, case.twin))
        yield Measured(case, ours, theirs, *errors)


def _error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference from the exact result, divided by the norm of the exact result."""
    exact = exact.double()
    return (torch.dist(found.double(), exact) / exact.norm()).item()


def _milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        return 1e3 * median_seconds(repeat(run))
    return triton.testing.do_bench(run, return_mode="median")


def _bytes(*tensors: Tensor) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _sums(latents: int, tokens: int, k: int) -> Iterator[Case]:
    """Yield the cases of sums of decoder rows and of their gradients, in bfloat16."""
    dense = torch.randn(latents, WIDTH, dtype=torch.bfloat16)
    grad = torch.randn(tokens, WIDTH, dtype=torch.bfloat16)
    index = torch.rand(tokens, latents).topk(k).indices
    values = torch.rand(tokens, k, dtype=torch.bfloat16)
    picks = Picks(index, latents)
    sums_moved = _bytes(index, values, dense, grad)
    for name, kernel, twin, factors in (
        ("row_sums", kernels.row_sums, picks.times, (values, dense)),
        ("row_dots", kernels.row_dots, picks.row_dots, (grad, dense)),
    ):
        wide = [factor.double() for factor in factors]
        yield Case(
            name,
            partial(kernel, index, *factors),
            partial(twin, *factors),
            partial(twin, *wide),
            sums_moved,
        )
    columns, order = index.flatten().sort()
    starts = torch.searchsorted(columns, torch.arange(latents))
    row, entries = order // k, values.flatten()[order]
    yield Case(
        "segment_sums",
        lambda: kernels.segment_sums(row, entries, starts, grad),
        lambda: picks.transposed_times(values, grad),
        lambda: picks.transposed_times(values.double(), grad.double()),
        _bytes(row, entries, starts, grad, dense),
    )


def _codes(latents: int, tokens: int, k: int) -> Iterator[Case]:
    """Yield the cases of picks in bfloat16, of packed codes, and of covariances of codes."""
    pre = torch.randn(tokens, latents, dtype=torch.bfloat16)
    threshold = torch.rand(latents)
    rule = CodeRule("topk", k)
    yield Case(
        "pick_largest",
        lambda: kernels.pick_largest(pre, threshold, k)[0].sort().values,
        lambda: pick_above(pre, threshold, rule)[0].sort().values,
        lambda: (pre.double() - threshold).topk(k).values.sort().values,
        _bytes(pre, threshold) + 12 * tokens * k,
    )
    active = torch.rand(tokens, latents) < k / latents
    yield Case(
        "pack_bits",
        lambda: kernels.pack_bits(active),
        lambda: pack(active),
        lambda: pack(active),
        _bytes(active) * 9 // 8,
    )
    codes, counts = active.to(torch.int8), active.sum(0)
    width = min(BLOCK, latents)
    block = slice(0, width)

    def signs(dtype: torch.dtype) -> Tensor:
        ones = codes.to(dtype)
        joint = ones.T @ ones[:, block]
        scaled = joint.mul_(tokens).addr_(counts.to(dtype), counts[block].to(dtype), alpha=-1)
        return scaled.fill_diagonal_(0).sign_()

    yield Case(
        "covariance_signs",
        lambda: kernels.covariance_signs(codes, counts, block)[0],
        lambda: signs(torch.float32),
        lambda: signs(torch.float64),
        _bytes(codes, counts) + latents * width,
    )
    some_signs = signs(torch.float32).to(torch.int8)
    yield Case(
        "signed_sums",
        lambda: kernels.signed_sums(codes, some_signs),
        lambda: codes.float() @ some_signs.float(),
        lambda: codes.double() @ some_signs.double(),
        _bytes(codes, some_signs) + 4 * tokens * width,
    )
