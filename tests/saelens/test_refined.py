"""Refined coders: their codes in every form, their files, their gradient, and how they are made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.coding import unpack
from sae_binary_ext.coding.forms import refine
from sae_binary_ext.measure import measure
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    RefinedSAE,
    RefinedSAEConfig,
    refine_coder,
)

D_IN, LATENTS = 6, 24
CASES: dict[str, dict[str, Any]] = {
    "topk": {},
    "threshold": {"selection": "threshold"},
    "subtracting b_dec": {"apply_b_dec_to_input": True},
    "normalising": {"normalize_activations": "layer_norm"},
    "bfloat16": {"dtype": "bfloat16"},
}
each_case = pytest.mark.parametrize("case", CASES)


def made(case: str) -> RefinedSAE:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"k": 4, "apply_b_dec_to_input": False} | CASES[case]
    coder = RefinedSAE(RefinedSAEConfig(D_IN, LATENTS, **fields))
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.normal_()
        coder.flip_price.uniform_()
    return coder


def x_of(coder: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 7, D_IN, generator=generator).to(coder.dtype)


def linear(coder: RefinedSAE) -> BinarySAE:
    """The coder without its second look."""
    fields = coder.cfg.to_dict() | {"architecture": "binary"}
    del fields["refine_passes"]
    plain = BinarySAE(BinarySAEConfig.from_dict(fields))
    plain.load_state_dict(coder.state_dict(), strict=False)
    return plain


@each_case
def test_codes_are_those_of_the_linear_encoder_refined(case: str):
    coder = made(case)
    x = x_of(coder)
    first, codes = linear(coder).encode(x), coder.encode(x)
    target = coder.process_sae_in(x) + coder.b_dec * (coder.cfg.apply_b_dec_to_input - 1)
    rows = (first.flatten(0, 1), target.flatten(0, 1), coder.W_dec, coder.flip_price)
    assert torch.equal(codes.flatten(0, 1), refine(*rows, 3))
    assert not torch.equal(codes, first)
    assert set(codes.unique().tolist()) == {0.0, 1.0}


@each_case
def test_every_form_holds_the_same_codes(case: str):
    coder = made(case)
    x = x_of(coder)
    codes = coder.encode(x)
    assert torch.equal(unpack(coder.encode_packed(x), LATENTS, codes.dtype), codes)
    ones, latents = coder.encode_indices(x)
    assert torch.equal(torch.zeros_like(codes).scatter(-1, latents, ones), codes)


@each_case
def test_the_saved_coder_gives_the_same_codes_and_outputs(case: str, tmp_path: Path):
    coder = made(case)
    coder.save_model(tmp_path / "coder")
    loaded: Any = SAE.load_from_disk(tmp_path / "coder")
    x = x_of(coder)
    assert torch.equal(loaded.encode(x), coder.encode(x))
    assert torch.equal(loaded(x), coder(x))


def test_the_gradient_is_that_of_the_linear_encoder_s_codes():
    refined = made("topk")
    plain = linear(refined)
    weight = torch.randn(LATENTS)
    for coder in (refined, plain):
        (coder.encode(x_of(coder)) @ weight).sum().backward()
    found, expected = refined.W_enc.grad, plain.W_enc.grad
    assert found is not None
    assert found.abs().sum() > 0
    assert torch.equal(found, expected)


def test_folding_a_scale_keeps_the_codes():
    coder = made("topk")
    x = x_of(coder)
    codes = coder.encode(x)
    coder.fold_activation_norm_scaling_factor(4.0)
    assert torch.equal(coder.encode(x / 4), codes)


def test_a_coder_that_never_looks_again_is_refused():
    with pytest.raises(ValueError, match="refine_passes=0"):
        RefinedSAEConfig(D_IN, LATENTS, k=4, refine_passes=0)


@pytest.mark.parametrize(
    ("batches", "cost", "problem"), [(2, 1e-3, "batches: 2"), (3, 0.0, "cost_of_bit=0.0")]
)
def test_what_cannot_be_refined_is_named(batches: int, cost: float, problem: str):
    coder, given = sparse_sums()
    with pytest.raises(ValueError, match=problem):
        refine_coder(coder, given[:batches], 3, cost)


def test_a_refined_coder_can_be_refined_again():
    coder, batches = sparse_sums()
    once = refine_coder(coder, batches[:5], 1, cost_of_bit=1e-3)
    twice = refine_coder(once, batches[:5], 3, cost_of_bit=1e-3)
    assert (once.cfg.refine_passes, twice.cfg.refine_passes) == (1, 3)
    x = batches[5][0]
    assert measure(twice, x, x).fvu < measure(once, x, x).fvu


def sparse_sums() -> tuple[BinarySAE, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A coder, and batches of activations that are sums of few of its decoder rows."""
    torch.manual_seed(0)
    coder = BinarySAE(BinarySAEConfig(16, 48, k=4, apply_b_dec_to_input=False))
    rows = torch.nn.functional.normalize(torch.randn(48, 16))
    with torch.no_grad():
        coder.W_dec.copy_(rows)
        coder.W_enc.copy_(rows.T)
        coder.b_enc.fill_(0.5)
    x = (torch.rand(3000, 48) < 0.06).float() @ rows
    return coder, [(part, part) for part in x.split(500)]


def test_refined_codes_have_less_error_at_as_many_bits():
    coder, batches = sparse_sums()
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    refined = refine_coder(coder, batches[:5], passes=3)

    x = batches[5][0]
    figures = [measure(each, x, x) for each in (coder, refined)]
    assert figures[1].fvu < 0.5 * figures[0].fvu
    assert figures[1].entropy_bits == pytest.approx(figures[0].entropy_bits, rel=0.15)
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())


def test_a_dearer_bit_leaves_fewer_bits():
    coder, batches = sparse_sums()
    x = batches[5][0]
    coders = [refine_coder(coder, batches[:5], 3, cost_of_bit=cost) for cost in (1e-4, 1e-2)]
    bits = [measure(each, x, x).entropy_bits for each in coders]
    assert bits[1] < 0.9 * bits[0]
