import pytest
import torch

from sae_binary_ext.coding.kernels.largest import largest, largest_and_next


@pytest.mark.parametrize(
    "shape", [(7, 600), (2, 3, 600), (600,), (0, 600), (7, 601), (5, 4608)], ids=str
)
@pytest.mark.parametrize("k", [1, 5, 16, 37, 40, 600])
def test_the_largest_are_those_that_torch_finds(shape: tuple[int, ...], k: int):
    margin = torch.randn(shape)
    if margin.numel():
        margin[..., 3] = torch.inf
        margin[..., 100:130] = -torch.inf
    values, index = largest(margin, k)
    expected = margin.topk(k, dim=-1)
    assert torch.equal(values.sort(dim=-1, descending=True).values, expected.values)
    assert torch.equal(margin.gather(-1, index), values)
    assert all(len(set(row)) == k for row in index.reshape(-1, k).tolist())


@pytest.mark.parametrize("latents", [60, 600])
def test_a_gradient_reaches_the_margins_that_are_found(latents: int):
    margin, incoming = torch.randn(7, latents).requires_grad_(), torch.randn(7, 5)
    values, index = largest(margin, 5)
    (gradient,) = torch.autograd.grad(values, margin, incoming)
    assert torch.equal(gradient, torch.zeros(7, latents).scatter(-1, index, incoming))


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_of_equal_margins_as_many_different_latents_are_found(levels: int):
    margin = torch.randint(0, levels, (50, 600)).float()
    values, index = largest(margin, 20)
    assert torch.equal(values.sort(dim=-1, descending=True).values, margin.topk(20).values)
    assert all(len(set(row)) == 20 for row in index.tolist())


@pytest.mark.parametrize("latents", [600, 2304, 4608])
@pytest.mark.parametrize("k", [5, 16, 32])
def test_of_equal_margins_the_same_are_found_however_many_tokens_there_are(latents: int, k: int):
    """A whole batch and a single token give the same latents, even if many margins are equal."""
    margin = torch.randint(0, 5, (150, latents)).float()
    _, index = largest(margin, k)
    for rows in (1, 7, 113):
        parts = [largest(part, k)[1] for part in margin.split(rows)]
        assert torch.equal(torch.cat(parts), index)


@pytest.mark.parametrize("shape", [(7, 600), (2, 3, 600), (600,), (0, 600), (7, 601), (5, 4608)])
@pytest.mark.parametrize(("k", "more"), [(1, 1), (16, 16), (37, 20), (40, 40), (400, 200)])
@pytest.mark.parametrize("levels", [3, 100, None])
def test_the_next_come_after_those_that_are_found_without_them(
    shape: tuple[int, ...], k: int, more: int, levels: int | None
):
    """The first k latents are those of `largest`, if equal margins are common, rare or absent."""
    margin = torch.randn(shape) if levels is None else torch.randint(0, levels, shape).float()
    first, first_index = largest(margin, k)
    values, index = largest_and_next(margin.clone(), k, more)
    assert torch.equal(index[..., :k], first_index)
    assert torch.equal(values[..., :k], first)
    expected = margin.topk(k + more, dim=-1).values[..., k:]
    assert torch.equal(values[..., k:].sort(dim=-1, descending=True).values, expected)
    assert torch.equal(margin.gather(-1, index), values)
    assert all(len(set(row)) == k + more for row in index.reshape(-1, k + more).tolist())
