import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import CodeRule, binarise

TOKENS, LATENTS = 20, 30
WITHOUT_THRESHOLD = torch.full((LATENTS,), -torch.inf)
competing = CodeRule("topk", 4, surrogate_latents="all")
free = CodeRule("threshold")


def gradient(margin: Tensor, rule: CodeRule, incoming: Tensor) -> Tensor:
    margin = margin.clone().requires_grad_()
    codes = binarise(margin, WITHOUT_THRESHOLD, rule)
    return torch.autograd.grad((codes * incoming).sum(), margin)[0]


def test_the_number_of_latents_that_fire_is_fixed_where_k_binds():
    margin, incoming = torch.randn(TOKENS, LATENTS) + 2, torch.randn(TOKENS, LATENTS)
    # If all codes of a token have the same gradient, its margins have gradient 0.
    alike = gradient(margin, competing, torch.randn(TOKENS, 1).expand_as(margin))
    torch.testing.assert_close(alike, torch.zeros_like(alike), atol=1e-6, rtol=0)
    # The gradients of a token's margins sum to 0, and latents far from firing learn too.
    each = gradient(margin, competing, incoming)
    torch.testing.assert_close(each.sum(-1), torch.zeros(TOKENS), atol=1e-6, rtol=0)
    assert (each != 0).all()


def test_latents_learn_for_themselves_where_k_leaves_room():
    margin, incoming = torch.randn(TOKENS, LATENTS) - 5, torch.randn(TOKENS, LATENTS)
    margin[:, :3] += 10
    found = gradient(margin, competing, incoming)
    torch.testing.assert_close(found, gradient(margin, free, incoming))


def test_as_many_places_as_latents_leave_nothing_to_compete_for():
    margin, incoming = torch.randn(TOKENS, LATENTS) + 5, torch.randn(TOKENS, LATENTS)
    rule = CodeRule("topk", LATENTS, surrogate_latents="all")
    found = gradient(margin, rule, incoming)
    torch.testing.assert_close(found, gradient(margin, free, incoming))


@pytest.mark.parametrize("learn", ["near", "all"])
def test_of_equal_margins_training_picks_those_that_the_saved_coder_picks(learn: str):
    margin = torch.randint(-3, 4, (TOKENS, LATENTS)).float()
    trained = binarise(margin, WITHOUT_THRESHOLD, CodeRule("topk", 4, surrogate_latents=learn))
    assert torch.equal(trained, binarise(margin, WITHOUT_THRESHOLD, CodeRule("topk", 4)))


def test_no_latent_but_the_nearest_learns():
    margin = torch.randn(TOKENS, LATENTS)
    rule = CodeRule("topk", 4, surrogate_latents="near")
    learns = gradient(margin, rule, torch.randn(TOKENS, LATENTS)) != 0
    near = torch.zeros_like(learns).scatter(-1, margin.topk(8).indices, True)
    assert torch.equal(learns, near)


@pytest.mark.parametrize("surrogate", ["sigmoid", "rectangle", "reste", "identity"])
def test_tokens_without_any_slope_learn_nothing(surrogate: str):
    margin = torch.full((TOKENS, LATENTS), -1e4)
    rule = CodeRule("topk", 4, surrogate, 0.5, "all")
    assert gradient(margin, rule, torch.randn(TOKENS, LATENTS)).isfinite().all()
