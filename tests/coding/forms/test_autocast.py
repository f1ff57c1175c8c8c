"""Under autocast, steps of codes that give every latent a gradient multiply in bfloat16."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from sae_binary_ext.coding import reference
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.encoded import ThresholdCodes, encode_batch
from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.coding.selection import CodeRule

TOKENS, D_IN, LATENTS = 60, 32, 200
RULES = [CodeRule("threshold"), CodeRule("topk", k=5, surrogate_latents="all")]
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm.out)


class Products(TorchDispatchMode):
    """Notes the dtypes of the factors of products of two dense matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in PRODUCTS:
            factors: tuple[Tensor, ...] = args[-2:]
            if all(each.layout == torch.strided for each in factors):
                self.dtypes += [each.dtype for each in factors]
        return func(*args, **kwargs or {})


def parameters(dtype: torch.dtype) -> list[Tensor]:
    """Returns x, encoder weight and bias, log threshold, origin and decoder weight."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, D_IN), (D_IN, LATENTS), (LATENTS,), (LATENTS,), (D_IN,), (LATENTS, D_IN))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def step(rule: CodeRule, dtype: torch.dtype) -> tuple[list[Tensor], list[torch.dtype]]:
    """Gradients of the parameters in a step under autocast, and the dtypes of its products."""
    x, weight, bias, log_threshold, origin, decoder = parameters(dtype)
    target = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    with Products() as products:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder = Encoder(x - origin.detach(), weight, bias, log_threshold, origin, rule)
            encoded, _ = encode_batch(encoder)
            assert isinstance(encoded, ThresholdCodes)
            output = encoded.decode(decoder, torch.zeros(D_IN, dtype=dtype))
            loss = (output * target).sum() + (encoded.firing_rates() ** 2).sum()
        loss.backward()  # outside autocast, as in SAELens' trainer
    found = [x, weight, bias, log_threshold, origin, decoder]
    return [each.grad for each in found if each.grad is not None], products.dtypes


@pytest.mark.parametrize("rule", RULES, ids=["threshold", "topk"])
def test_products_of_both_passes_are_in_bfloat16(rule: CodeRule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "BLOCK_TOKENS", 25)
    monkeypatch.setattr(processor, "SPARSE_DENSITY", 1.0)  # the decoder sums rows
    gradients, dtypes = step(rule, torch.float32)
    # Forward has one product; each block of tokens has three in backward, x's gradient included.
    assert len(dtypes) >= 2 * (1 + 3 * 3)
    assert set(dtypes) == {torch.bfloat16}
    assert {each.dtype for each in gradients} == {torch.float32}


@pytest.mark.parametrize("rule", RULES, ids=["threshold", "topk"])
def test_gradients_are_those_of_the_reference_but_for_rounding(
    rule: CodeRule, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "BLOCK_TOKENS", 25)
    found, _ = step(rule, torch.float32)
    x, weight, bias, log_threshold, origin, decoder = wanted = parameters(torch.float64)
    target = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1)).double()
    codes = reference.codes((x - origin) @ weight + bias, log_threshold, rule)
    ((codes @ decoder * target).sum() + (codes.mean(0) ** 2).sum()).backward()
    for mine, parameter in zip(found, wanted, strict=True):
        assert parameter.grad is not None
        # A few codes differ, because their pre-activations are within rounding of the threshold.
        similarity = torch.cosine_similarity(
            mine.double().flatten(), parameter.grad.flatten(), dim=0
        )
        assert similarity > 0.98
        assert 0.95 < mine.double().norm() / parameter.grad.norm() < 1.05


def test_autocast_leaves_float64_alone():
    _, dtypes = step(RULES[0], torch.float64)
    assert set(dtypes) == {torch.float64}
