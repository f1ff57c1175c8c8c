import pytest
import torch
from torch import Tensor

import sae_binary_ext.coding.covariance as module
from sae_binary_ext.coding import covariance_penalty, reference, sampled_covariance_penalty
from sae_binary_ext.coding.kernels import processor
from tests.limits import little_memory


@pytest.fixture(params=["dense", "sums of rows", "bytes"])
def in_narrow_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the matrix into blocks of three latents and parts of three rows. The products are matrix
    products, sums of rows or products of bytes.
    """
    monkeypatch.setattr(processor, "FEWEST_ROWS", 3)
    monkeypatch.setattr(processor, "PART", 1)
    monkeypatch.setattr(processor, "SPARSE_DENSITY", float(request.param == "sums of rows"))
    monkeypatch.setattr(processor, "multiplies_bytes", lambda: request.param == "bytes")
    monkeypatch.setattr(processor, "BYTE_DENSITY", 0.0)
    for name in ("DENSE_BLOCK", "SPARSE_BLOCK"):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(module, "NARROWEST_BLOCK", 3)


def some_codes(density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    codes = (torch.rand(40, 11) < density).to(dtype)
    codes[:, 4] = 0
    codes[:, 7] = 1
    codes[:, 9] = codes[:, 2]
    return codes.requires_grad_()


@pytest.mark.usefixtures("in_narrow_blocks")
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_value_and_gradient_are_those_of_every_pair(density: float):
    codes = some_codes(density)
    penalty = covariance_penalty(codes)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(reference.covariance_l1(codes))
    (3 * penalty).backward()
    expected = 3 * reference.covariance_gradient(codes.detach())
    torch.testing.assert_close(codes.grad, expected.float())


@pytest.mark.usefixtures("in_narrow_blocks")
def test_gradient_of_any_values_equals_finite_differences():
    codes = torch.rand(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(covariance_penalty, (codes,))


@pytest.mark.usefixtures("in_narrow_blocks")
def test_covariances_of_exactly_zero_have_no_sign():
    """A covariance of zero gives no gradient, although its float32 value may differ from zero."""
    pair = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    codes = pair.repeat(257, 1).requires_grad_()
    penalty = covariance_penalty(codes)
    assert penalty.item() == 0
    penalty.backward()
    assert not codes.grad.any()


@pytest.mark.usefixtures("in_narrow_blocks")
def test_codes_in_half_precision_are_counted_exactly():
    codes = some_codes(0.3, torch.bfloat16)
    many = codes.detach().repeat(300, 1).requires_grad_()
    penalty = covariance_penalty(many)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(reference.covariance_l1(many), rel=1e-6)
    penalty.backward()
    assert many.grad.dtype == torch.bfloat16


def test_leading_dimensions_are_the_batch():
    codes = some_codes(0.5).detach()
    whole = covariance_penalty(codes)
    assert covariance_penalty(codes.view(2, 20, 11)) == whole


def test_covariance_of_one_row_is_refused():
    with pytest.raises(ValueError, match="batch of at least 2"):
        covariance_penalty(torch.ones(1, 3))


def test_no_matrix_of_latents_by_latents_is_made():
    """At 15,000 latents the matrix would take 900 MB, and the test allows half a gigabyte."""
    codes = (torch.rand(16, 15_000) < 0.001).float().requires_grad_()
    with little_memory():
        covariance_penalty(codes).backward()
    assert codes.grad.isfinite().all()


@pytest.mark.usefixtures("in_narrow_blocks")
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_the_estimate_is_right_on_average_and_so_is_its_gradient(density: float):
    codes = some_codes(density, torch.float64)
    exact = covariance_penalty(codes)
    (exact_gradient,) = torch.autograd.grad(exact, codes)
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    for seed in range(600):
        values.append(sampled_covariance_penalty(codes, 4, seed))
        gradients.append(torch.autograd.grad(values[-1], codes)[0])
    value, gradient = torch.stack(values), torch.stack(gradients)
    assert value.std() > 0
    for found, wanted in ((value, exact), (gradient, exact_gradient)):
        error = (found.mean(0) - wanted).abs() / (found.std(0) / 600**0.5).clamp_min(1e-12)
        assert error.max() < 5.5


@pytest.mark.usefixtures("in_narrow_blocks")
def test_the_estimate_s_gradient_is_its_own():
    codes = torch.rand(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: sampled_covariance_penalty(c, 4, 0), (codes,))


def test_a_draw_depends_on_the_seed_alone():
    codes = some_codes(0.5).detach()
    first = sampled_covariance_penalty(codes, 4, 1)
    torch.rand(3)
    assert sampled_covariance_penalty(codes, 4, 1) == first
    assert any(sampled_covariance_penalty(codes, 4, seed) != first for seed in range(2, 6))


@pytest.mark.parametrize("sample", [11, 20])
def test_a_sample_of_all_is_exact(sample: int):
    codes = some_codes(0.5).detach()
    assert sampled_covariance_penalty(codes, sample, 0) == covariance_penalty(codes)


def test_a_sample_of_none_is_refused():
    with pytest.raises(ValueError, match="sample=0"):
        sampled_covariance_penalty(torch.ones(3, 3), 0, 0)
