import subprocess
import sys

import pytest
import torch

from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.coding.kernels.sparse import (
    ByteMatrix,
    DenseMatrix,
    Picks,
    SparseMatrix,
    code_matrix,
    row_dots,
    whole_matrix,
)

TOKENS, LATENTS, D = 30, 20, 6


@pytest.mark.parametrize("cached", [0, 2**22])
@pytest.mark.parametrize("latents", [LATENTS, 2**15, 2**15 + 1])
@pytest.mark.parametrize("block", [7 * D, 2**18])
def test_products_of_picks_equal_the_dense_ones(
    latents: int, cached: int, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "CACHED", cached)
    monkeypatch.setattr(processor, "BLOCK", block)
    monkeypatch.setattr(processor, "BLOCK_ENTRIES", 0)
    rows = torch.rand(TOKENS, latents)
    rows[0, -1] = 2
    index = rows.topk(4).indices
    values = torch.randn(TOKENS, 4, dtype=torch.float64)
    matrix = torch.zeros(TOKENS, latents, dtype=torch.float64).scatter(-1, index, values)
    right, left = torch.randn(latents, D).double(), torch.randn(TOKENS, D).double()
    picks = Picks(index, latents)
    torch.testing.assert_close(picks.times(values, right), matrix @ right)
    for entries, expected in ((values, matrix), (-values, -matrix)):
        torch.testing.assert_close(picks.transposed_times(entries, left), expected.T @ left)
    torch.testing.assert_close(picks.row_dots(left, right), (left @ right.T).gather(-1, index))


@pytest.mark.parametrize("cached", [0, 2**22])
@pytest.mark.parametrize("entries", [0, 1, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_of_a_product_are_those_of_the_whole(
    dtype: torch.dtype, entries: int, cached: int, monkeypatch: pytest.MonkeyPatch
):
    """row_dots gives the right entries if rows have many entries, few entries or none."""
    monkeypatch.setattr(processor, "CACHED", cached)
    row = torch.randint(1, TOKENS, (entries,)).sort().values
    starts = torch.searchsorted(row, torch.arange(TOKENS + 1))
    column = torch.randint(LATENTS, (entries,))
    left, right = torch.randn(TOKENS, D).to(dtype), torch.randn(LATENTS, D).to(dtype)
    dots = row_dots(left, right, starts, column)
    torch.testing.assert_close(dots, (left @ right.T)[row, column])


def test_sums_of_bfloat16_are_rounded_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "BLOCK", 7 * D)
    monkeypatch.setattr(processor, "BLOCK_ENTRIES", 0)
    index, values = torch.rand(TOKENS, LATENTS).topk(15).indices, torch.ones(TOKENS, 15)
    dense = torch.rand(TOKENS, D).bfloat16()
    found = Picks(index, LATENTS).transposed_times(values, dense)
    exact = torch.zeros(TOKENS, LATENTS).scatter(-1, index, values).T.double() @ dense.double()
    assert torch.equal(found, exact.bfloat16())


FIRST_PRODUCT = """
import torch
from sae_binary_ext.coding.kernels import (Picks)

index = torch.arange(6).view(3, 2)
Picks(index, 6).row_dots(torch.ones(3, 4), torch.ones(6, 4))
"""


def test_users_do_not_hear_of_the_state_of_sparse_matrices():
    subprocess.run([sys.executable, "-W", "error", "-c", FIRST_PRODUCT], check=True)


@pytest.mark.parametrize("form", [DenseMatrix, SparseMatrix])
@pytest.mark.parametrize("values", ["bool", "ones", "any"])
def test_code_matrices_equal_the_dense_products(
    form: type, values: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "SPARSE_DENSITY", float(form is SparseMatrix))
    monkeypatch.setattr(processor, "FEWEST_ROWS", 7)
    monkeypatch.setattr(processor, "PART", 1)
    active = torch.rand(TOKENS, LATENTS) < 0.2
    active[3], active[:, 5], active[-1], active[:, -1] = False, False, False, False
    codes = active.double() * (torch.randn(TOKENS, LATENTS) if values == "any" else 1)
    matrix = code_matrix(active if values == "bool" else codes)
    assert isinstance(matrix, form)
    right, left = torch.randn(LATENTS, D).double(), torch.randn(TOKENS, D).double()
    torch.testing.assert_close(matrix.times(right), codes @ right)
    torch.testing.assert_close(matrix.transposed_times(left), codes.T @ left)
    assert torch.equal(matrix.counts(), active.sum(0))
    together = active.int().T @ active.int()
    for one_by_one in (True, False):
        monkeypatch.setattr(processor, "PAIRED_DENSITY", float(one_by_one))
        pairs = torch.ones(LATENTS, LATENTS, dtype=torch.int32)
        matrix.add_pair_counts(pairs)
        assert torch.equal((pairs - 1).triu(), together.triu())


@pytest.mark.parametrize(("density", "form"), [(0.02, SparseMatrix), (0.5, DenseMatrix)])
def test_few_ones_are_summed_and_many_multiplied(density: float, form: type):
    assert isinstance(code_matrix(torch.rand(200, 50) < density), form)


@pytest.fixture
def byte_products(monkeypatch: pytest.MonkeyPatch):
    """Allows products of bytes on any processor."""
    monkeypatch.setattr(processor, "multiplies_bytes", lambda: True)


@pytest.mark.usefixtures("byte_products")
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32, torch.float64])
def test_products_of_bytes_equal_the_dense_ones(dtype: torch.dtype):
    active = torch.rand(700, LATENTS) < 0.7
    active[3], active[:, 5], active[:, 6] = False, False, True
    matrix = whole_matrix(active.to(dtype))
    assert isinstance(matrix, ByteMatrix)
    right, left = torch.randint(-128, 128, (LATENTS, D)), torch.randint(-128, 128, (700, D))
    for wide in (torch.float32, torch.float64):
        assert torch.equal(matrix.times(right.to(wide)), (active.long() @ right).to(wide))
        assert torch.equal(
            matrix.transposed_times(left.to(wide)), (active.T.long() @ left).to(wide)
        )
    assert torch.equal(matrix.counts(), active.sum(0))
    pairs = torch.ones(LATENTS, LATENTS, dtype=torch.int32)
    matrix.add_pair_counts(pairs)
    assert torch.equal((pairs - 1).triu(), (active.T.long() @ active.long()).triu())


@pytest.mark.usefixtures("byte_products")
@pytest.mark.parametrize(
    ("codes", "form"),
    [
        (torch.ones(200, 50), ByteMatrix),
        (torch.ones(200, 50).index_fill(0, torch.tensor(7), 0.5), DenseMatrix),
        (torch.ones(200, 50).index_fill(0, torch.tensor(7), -1), DenseMatrix),
        (torch.eye(200), SparseMatrix),
        (torch.ones(200, 1), DenseMatrix),
    ],
    ids=["ones", "a half", "less than none", "few ones", "one latent"],
)
def test_bytes_are_for_many_ones_and_nothing_else(codes: torch.Tensor, form: type):
    assert isinstance(whole_matrix(codes), form)
    torch.testing.assert_close(whole_matrix(codes).times(codes.T), codes @ codes.T)


def test_processors_without_products_of_bytes_have_other_forms(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "multiplies_bytes", lambda: False)
    assert isinstance(whole_matrix(torch.ones(200, 50)), DenseMatrix)
    assert isinstance(whole_matrix(torch.eye(200)), SparseMatrix)


def test_no_ones_make_zeros():
    matrix = code_matrix(torch.zeros(TOKENS, LATENTS, dtype=torch.bool))
    assert not matrix.times(torch.ones(LATENTS, D)).any()
    assert not matrix.transposed_times(torch.ones(TOKENS, D)).any()
    assert not matrix.counts().any()
    pairs = torch.zeros(LATENTS, LATENTS, dtype=torch.int32)
    matrix.add_pair_counts(pairs)
    assert not pairs.any()
