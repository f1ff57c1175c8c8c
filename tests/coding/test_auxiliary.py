import pytest
import torch

from sae_binary_ext.coding import auxiliary, reference
from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.selection import CodeRule
from tests.cases import LATENTS, each_rule

D_OUT = 6


@pytest.mark.parametrize("known", [True, False], ids=["CPU", "GPU"])
@pytest.mark.parametrize("dead_latents", [[5], [1, 4], [0, 2, 3, 9, 11, 20]])
@each_rule
def test_value_and_gradients_equal_the_reference(
    rule: CodeRule, dead_latents: list[int], known: bool, monkeypatch: pytest.MonkeyPatch
):
    """At most D_OUT / 2 dead latents count as fired, even if their margins are negative."""
    monkeypatch.setattr(auxiliary, "knows_values", lambda _: known)
    margin = torch.randn(30, LATENTS, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(LATENTS, D_OUT, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(30, D_OUT, dtype=torch.float64, requires_grad=True)
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[dead_latents] = True

    error = auxiliary_error(margin, dead, residual, weight, rule)
    ours = torch.autograd.grad(error, (margin, weight, residual), allow_unused=True)

    chosen = torch.zeros_like(margin)
    for row in range(30):
        ranked = sorted(dead_latents, key=lambda j: -margin[row, j].item())
        chosen[row, ranked[: D_OUT // 2]] = 1
    linear = reference.slope(margin, rule).detach() * margin
    codes = chosen * (1 + (linear - linear.detach()))
    share = min(len(dead_latents) / (D_OUT // 2), 1)
    expected = share * (codes @ weight - residual.detach()).square().sum()
    theirs = torch.autograd.grad(expected, (margin, weight))

    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(ours[:2], theirs)
    assert ours[2] is None


def test_no_dead_latent_on_a_gpu_means_no_error_and_no_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auxiliary, "knows_values", lambda _: False)
    margin = torch.randn(5, LATENTS, requires_grad=True)
    weight = torch.randn(LATENTS, D_OUT, requires_grad=True)
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    error = auxiliary_error(margin, dead, torch.randn(5, D_OUT), weight, CodeRule("topk", 4))
    error.backward()
    assert error == 0
    assert not torch.cat([margin.grad, weight.grad.T]).any()  # pyright: ignore
