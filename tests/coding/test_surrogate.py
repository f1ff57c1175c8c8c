import pytest
import torch

from sae_binary_ext.coding import reference
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import RESTE_SMALLEST_MARGIN, SURROGATES, reste, step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_step_is_exactly_zero_or_one(surrogate: str, dtype: torch.dtype):
    margin = torch.tensor([-torch.inf, -1.0, -1e-30, 0.0, 1e-30, 1.0, torch.inf], dtype=dtype)
    codes = step(margin, surrogate, 1.0)
    assert codes.dtype == dtype
    assert codes.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradient_is_the_formula(surrogate: str, temperature: float):
    margin = torch.randn(200, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(200, dtype=torch.float64)
    step(margin, surrogate, temperature).backward(incoming)
    rule = CodeRule("threshold", 1, surrogate, temperature)
    expected = incoming * reference.slope(margin.detach(), rule)
    torch.testing.assert_close(margin.grad, expected, rtol=1e-12, atol=1e-12)


def test_sigmoid_integrates_to_one():
    # The paper's code drops the factor 1/T; without this factor the area would be T.
    margin = torch.linspace(-100, 100, 200_001, dtype=torch.float64)
    area = torch.trapezoid(SURROGATES["sigmoid"].slope(margin, 2.0), margin)
    assert area.item() == pytest.approx(1.0, abs=1e-9)


def test_reste_is_finite_at_zero():
    at_zero, at_bound = reste(torch.tensor([0.0, RESTE_SMALLEST_MARGIN]), 2.0)
    assert torch.isfinite(at_zero)
    assert at_zero == at_bound
