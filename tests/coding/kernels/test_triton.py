"""Each Triton kernel gives the results of its torch twin, in Triton's interpreter or on a GPU."""

import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import CodeRule, pack
from sae_binary_ext.coding.forms.margins import pick_above
from sae_binary_ext.coding.kernels import Picks

pytest.importorskip("triton")
PACKAGE = "sae_binary_ext.coding.kernels.triton"
TOKENS, LATENTS, K, WIDTH = 9, 83, 5, 520


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True
)
def device(request: pytest.FixtureRequest):
    with torch.device(request.param):
        yield request.param


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    # If there is no GPU, tests/conftest.py has set TRITON_INTERPRET=1 before this import.
    return importlib.import_module(PACKAGE)


def some_codes(density: float) -> Tensor:
    codes = torch.rand(TOKENS, LATENTS) < density
    codes[:, 3], codes[:, 70], codes[2] = True, False, False
    return codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_k_largest_margins_are_picked(kernels: ModuleType, dtype: torch.dtype):
    pre, threshold = torch.randn(TOKENS, LATENTS, dtype=dtype), torch.rand(LATENTS)
    pre[0], pre[1, :60], pre[2, 7] = -3.0, -torch.inf, torch.inf
    values, index = kernels.pick_largest(pre, threshold, K)
    expected, _ = pick_above(pre, threshold, CodeRule("topk", K))
    assert torch.equal(values.sort().values, expected.sort().values)
    assert torch.equal((pre - threshold).gather(1, index), values)
    assert (index.diff() > 0).all()


def test_of_equal_margins_the_first_are_picked(kernels: ModuleType):
    values, index = kernels.pick_largest(torch.zeros(2, LATENTS), torch.zeros(LATENTS), K)
    assert torch.equal(index, torch.arange(K).expand(2, K))
    assert not values.any()


def test_sums_of_rows_and_both_gradients_are_the_twin_s(kernels: ModuleType):
    margin = torch.rand(TOKENS, LATENTS)
    margin[:, 0], margin[:, -1] = 0, 1  # latent 0 gets no entry, the last gets all
    index = margin.topk(K).indices
    picks = Picks(index, LATENTS)
    values = torch.randn(TOKENS, K).requires_grad_()
    dense = torch.randn(LATENTS, WIDTH)
    incoming = torch.randn(TOKENS, WIDTH)
    expected = picks.times(values, dense)
    (for_values,) = torch.autograd.grad(expected, values, incoming)
    torch.testing.assert_close(kernels.row_sums(index, values.detach(), dense), expected.detach())
    torch.testing.assert_close(kernels.row_dots(index, incoming, dense), for_values)

    order = index.flatten().argsort()
    starts = torch.searchsorted(index.flatten()[order], torch.arange(LATENTS))
    found = kernels.segment_sums(order // K, values.detach().flatten()[order], starts, incoming)
    torch.testing.assert_close(found, picks.transposed_times(values.detach(), incoming))


@pytest.mark.parametrize("latents", [LATENTS, 80, 1])
def test_bits_are_packed_as_the_twin_packs_them(kernels: ModuleType, latents: int):
    active = some_codes(0.4)[:, :latents]
    assert torch.equal(kernels.pack_bits(active), pack(active))


@pytest.mark.parametrize("block", [slice(0, 64), slice(64, 128)], ids=str)
def test_signs_of_covariances_are_exact(kernels: ModuleType, block: slice):
    active = some_codes(0.4)
    counts = active.sum(0)
    whole = active.cpu().long()
    joint = (whole.T @ whole).to(counts.device)
    scaled = (TOKENS * joint - counts[:, None] * counts).fill_diagonal_(0)[:, block]

    signs, total = kernels.covariance_signs(active.to(torch.int8), counts, block)
    assert torch.equal(signs, scaled.sign().to(torch.int8))
    assert total == scaled.abs().sum()
    sums = kernels.signed_sums(active.to(torch.int8), signs)
    assert torch.equal(sums.cpu(), (whole @ signs.cpu().long()).int())


COMPILE = """
import importlib, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

signatures = {
    "row_sums._row_sums": "*i64 *T *T *T i32 i32",
    "row_sums._row_dots": "*i64 *T *T *T i32 i32",
    "row_sums._segment_sums": "*i64 *T *i64 *T *T i32 i32 i32",
    "picking._pick_largest": "*T *fp32 *fp32 *i64 i32 i32",
    "picking._pack": "*u8 *u8 i32 i32",
    "covariances._signs": "*i8 *i64 *i8 *i64 i32 i32 i32 i32 i32",
    "covariances._signed_sums": "*i8 *i8 *i32 i32 i32 i32",
}
sizes = {"BLOCK": 1024, "BYTES": 128, "TILE": 64}
for name, kinds in signatures.items():
    module, function = name.split(".")
    kernel = getattr(importlib.import_module(f"{sys.argv[1]}.{module}"), function)
    *arguments, constant = kernel.arg_names
    for floats in ("fp32", "bf16") if "T" in kinds else ("",):
        types = kinds.replace("T", floats).split()
        signature = {**dict(zip(arguments, types, strict=True)), constant: "constexpr"}
        source = ASTSource(kernel, signature, constexprs={constant: sizes[constant]})
        compiled = compile(source, target=GPUTarget("cuda", 90, 32))
        print(name, floats, len(compiled.asm["cubin"]) > 0)
"""


@pytest.mark.integration
def test_kernels_compile_for_a_gpu_that_is_not_there():
    process = subprocess.run(
        [sys.executable, "-c", COMPILE, PACKAGE],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("True") == 11
