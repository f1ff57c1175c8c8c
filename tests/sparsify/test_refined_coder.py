"""Refined coders of sparsify: codes in every form, what each parameter learns from, and files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext.checkpoints import coder_to_saelens, coder_to_sparsify, sparsify
from sae_binary_ext.coding import (
    binarise,
    follow_prices,
    price_of_bits,
    scatter_codes,
    total_variance,
    unpack,
)
from sae_binary_ext.coding.forms import refine
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig, RefinedSparseCoder
from sae_binary_ext.sparsify.coder import RATE_UPDATE
from sae_binary_ext.sparsify.refined_coder import RATE_TOKENS

D_IN, LATENTS, K, TOKENS = 8, 64, 4, 50
CASES: dict[str, dict[str, Any]] = {
    "topk": {},
    "threshold": {"activation": "binary"},
    "groupmax": {"activation": "groupmax_binary"},
    "gumbel": {"activation": "gumbel_binary"},
    "uncentred": {"subtract_b_dec": False},
    "b_dec learns through both": {"encoder_trains_b_dec": True},
    "skip autoencoder": {"skip_connection": True},
}
each_case = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str
)


def coder_of(
    case: str = "topk", dtype: torch.dtype = torch.float64, **fields: Any
) -> RefinedSparseCoder:
    """A coder as sparsify builds it, with random parameters, prices and firing rates."""
    settings: dict[str, Any] = {"num_latents": LATENTS, "k": K, "refine_passes": 2}
    config = BinarySparseCoderConfig(**settings | CASES[case] | fields)
    torch.manual_seed(0)
    coder = SparseCoder(D_IN, config, dtype=dtype)
    assert type(coder) is RefinedSparseCoder
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        coder.flip_price.uniform_(0, 0.1)
        coder.firing_rates.uniform_(0, 0.2)
    return coder


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(3)).to(dtype)


def origin_of(coder: RefinedSparseCoder) -> Tensor:
    return coder.b_dec if coder.cfg.subtract_b_dec else torch.zeros_like(coder.b_dec)


def pre_of(coder: RefinedSparseCoder, x: Tensor) -> Tensor:
    return (x - origin_of(coder)) @ coder.encoder.weight.T + coder.encoder.bias


@torch.no_grad()
def expected_codes(coder: RefinedSparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The linear encoder's codes of x [tokens, d_in], and these codes refined."""
    linear = binarise(pre_of(coder, x), coder.log_threshold, coder.rule)
    origin = origin_of(coder)
    target = (x - origin) + origin - coder.b_dec
    if coder.W_skip is not None:
        target = target - x @ coder.W_skip.T
    weight, passes = coder.decoder_weight(), coder.cfg.refine_passes
    return linear, refine(linear, target, weight, coder.flip_price, passes)


def dense_codes(coder: SparseCoder, x: Tensor) -> Tensor:
    acts, index, pre = coder.encode(x)
    return torch.zeros_like(pre).scatter_(-1, index, acts)


@each_case
@each_dtype
def test_codes_are_those_of_the_linear_encoder_refined(case: str, dtype: torch.dtype):
    coder, x = coder_of(case, dtype), batch(dtype)
    linear, refined = expected_codes(coder, x)
    codes = dense_codes(coder, x)
    assert codes.dtype == dtype
    assert torch.equal(codes, refined)
    assert not torch.equal(codes, linear)
    assert set(codes.unique().tolist()) == {0.0, 1.0}


@torch.no_grad()
@each_case
@each_dtype
@pytest.mark.parametrize("lead", [(TOKENS,), (5, 10), (1,), ()], ids=str)
def test_every_form_holds_the_same_codes(case: str, dtype: torch.dtype, lead: tuple[int, ...]):
    coder = coder_of(case, dtype).eval()
    rows = batch(dtype)[: torch.Size(lead).numel()]
    x = rows.view(*lead, D_IN)
    codes = dense_codes(coder, x)
    assert codes.shape == (*lead, LATENTS)
    assert torch.equal(unpack(coder.encode_packed(x), LATENTS, dtype), codes)
    ones, index = coder.encode_indices(x)
    assert ones.dtype == dtype
    assert torch.equal(scatter_codes(ones, index, LATENTS), codes)
    acts, index, _ = coder.encode(x)
    out = coder.decode(acts, index)
    if coder.W_skip is not None:
        out = out + x @ coder.W_skip.T
    result = coder(x)
    if dtype != torch.bfloat16:
        torch.testing.assert_close(result.sae_out, out)
    fired = codes.view(-1, LATENTS).any(0).nonzero().flatten()
    assert torch.equal(result.latent_indices, fired)


@torch.no_grad()
def test_training_steps_use_the_codes_of_encode():
    coder, x = coder_of(), batch()
    with torch.enable_grad():
        sae_out = coder(x).sae_out
    expected = dense_codes(coder, x) @ coder.decoder_weight() + coder.b_dec
    torch.testing.assert_close(sae_out, expected)


def test_a_token_on_which_no_latent_fires_has_no_code():
    coder = coder_of("threshold")
    coder.log_threshold.data.fill_(20.0)
    coder.flip_price.fill_(1e6)
    acts, _, _ = coder.encode(batch())
    assert acts.shape == (TOKENS, 1)
    assert acts.sum() == 0


def test_no_tokens_have_no_codes():
    coder = coder_of()
    assert coder.encode(batch()[:0]).pre_acts.shape == (0, LATENTS)
    assert coder.encode_packed(batch()[:0]).shape == (0, LATENTS // 8)
    assert len(coder(batch()[:0]).sae_out) == 0


@pytest.mark.parametrize("method", ["encode", "encode_packed", "encode_indices"])
def test_wrong_inputs_are_named(method: str):
    encode = getattr(coder_of(), method)
    with pytest.raises(ValueError, match=f"d_in={D_IN}"):
        encode(torch.zeros(3, D_IN + 1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode(torch.full((3, D_IN), torch.nan))


def test_the_gradient_of_encode_is_that_of_the_linear_codes():
    coder, x = coder_of("b_dec learns through both"), batch()
    acts, index, _ = coder.encode(x)
    incoming = torch.randn(LATENTS, dtype=torch.float64)
    learned = [coder.encoder.weight, coder.encoder.bias, coder.log_threshold, coder.b_dec]
    found = torch.autograd.grad((acts * incoming[index]).sum(), learned)
    linear = binarise(pre_of(coder, x), coder.log_threshold, coder.rule)
    expected = torch.autograd.grad((linear.gather(-1, index) * incoming[index]).sum(), learned)
    assert all(gradient.any() for gradient in found)
    torch.testing.assert_close(found, expected)


@each_case
def test_the_decoder_learns_from_the_error_and_the_encoder_to_tell_the_codes(case: str):
    coder, x = coder_of(case, ste_temperature=0.7), batch()
    coder(x).fvu.backward()
    _, codes = expected_codes(coder, x)  # with the prices that the step has set

    weight, bias = (p.detach().clone().requires_grad_() for p in (coder.W_dec, coder.b_dec))
    output = codes @ weight + bias
    if coder.W_skip is not None:
        output = output + x @ coder.W_skip.detach().T
    fvu = (output - x).square().sum() / (x - x.mean(0)).square().sum()
    fvu.backward()
    torch.testing.assert_close(coder.W_dec.grad, weight.grad)

    # The derivative of the logistic's cross-entropy is its probability less the code.
    margin = pre_of(coder, x).detach() - coder.log_threshold.detach().exp()
    slope = ((margin / 0.7).sigmoid() - codes) / 0.7 / TOKENS
    torch.testing.assert_close(coder.encoder.bias.grad, slope.sum(0))
    centred = (x - origin_of(coder)).detach()
    torch.testing.assert_close(coder.encoder.weight.grad, slope.T @ centred)
    threshold = -slope.sum(0) * coder.log_threshold.detach().exp()
    torch.testing.assert_close(coder.log_threshold.grad, threshold)
    through = coder.encoder.weight.detach().T @ slope.sum(0) * coder.cfg.encoder_trains_b_dec
    torch.testing.assert_close(coder.b_dec.grad, bias.grad - through)


def test_where_the_model_gives_the_loss_the_encoder_still_learns_to_tell_the_codes():
    gradients = []
    for share in (0.0, 0.5):
        coder = coder_of()
        coder.progress.regulariser_share = share
        out = coder(batch())
        (out.sae_out.sum() if share else out.fvu).backward()
        gradients.append(coder.encoder.weight.grad)
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0])


def test_the_loss_in_the_log_is_the_fvu_alone():
    coder, x = coder_of(), batch()
    fvu = coder(x).fvu
    error = dense_codes(coder, x) @ coder.decoder_weight() + coder.b_dec - x
    expected = error.square().sum() / (x - x.mean(0)).square().sum()
    torch.testing.assert_close(fvu, expected)


def test_auxk_reaches_the_encoder_of_dead_latents():
    coder, x = coder_of(), batch()
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[[3, 17, 40]] = True
    loss = coder(x, dead_mask=dead).auxk_loss
    (gradient,) = torch.autograd.grad(loss, coder.encoder.weight)
    assert loss > 0
    assert gradient[dead].any()
    assert not gradient[~dead].any()


@pytest.mark.parametrize("dense_alpha", [0.0, 4e-3])
def test_prices_follow_firing_rates_and_variances(dense_alpha: float):
    coder, x = coder_of(dense_alpha=dense_alpha, dense_rate=0.1, cost_of_bit=1e-3), 3 * batch()
    rates, before = coder.firing_rates.clone(), coder.flip_price.clone()
    coder(x)
    variance = total_variance(x)
    price = price_of_bits(rates, 1e-3 * variance.item(), RATE_TOKENS)
    assert 0 < (rates > 0.1).sum() < LATENTS
    expected = price + dense_alpha * variance * (rates > 0.1)
    torch.testing.assert_close(coder.flip_price, follow_prices(before, expected, len(x)))
    fired = dense_codes(coder, x).mean(0)
    torch.testing.assert_close(coder.firing_rates, rates.lerp(fired, RATE_UPDATE))


def test_a_latent_that_never_fired_keeps_a_price_at_which_it_can_fire():
    coder, x = coder_of(), batch()
    coder.firing_rates[5] = 0.0
    coder.flip_price.zero_()  # the first batch sets the prices alone
    coder(x)
    bits = coder.flip_price[5] / (coder.cfg.cost_of_bit * total_variance(x))
    assert bits.item() == pytest.approx(15.29, abs=0.01)  # log2(2 x 20,000)


def test_the_first_batch_has_the_prices_of_the_linear_codes():
    coder, x = coder_of(), batch()
    coder.flip_price.zero_()
    coder.firing_rates.zero_()
    coder(x)
    rates = expected_codes(coder, x)[0].mean(0)
    price = price_of_bits(rates, coder.cfg.cost_of_bit * total_variance(x).item(), RATE_TOKENS)
    torch.testing.assert_close(coder.flip_price, price)


def test_a_converted_coder_without_rates_keeps_its_prices_until_a_batch_tells_them():
    coder, x = coder_of(), batch()
    coder.firing_rates.zero_()
    before = coder.flip_price.clone()
    coder(x)
    assert torch.equal(coder.flip_price, before)
    coder(x)
    assert not torch.equal(coder.flip_price, before)


@pytest.mark.parametrize("tokens", [1, 5])
def test_prices_stay_on_a_batch_without_variance(tokens: int):
    coder = coder_of()
    before = coder.flip_price.clone()
    coder(torch.full((tokens, D_IN), 0.5, dtype=torch.float64))
    assert torch.equal(coder.flip_price, before)


def test_prices_stay_outside_of_training():
    coder, x = coder_of(), batch()
    before = coder.flip_price.clone()
    with torch.no_grad():
        coder(x)
    coder.eval()(x)
    coder.encode(x)
    assert torch.equal(coder.flip_price, before)


@each_case
@each_dtype
def test_a_saved_coder_loads_bit_for_bit(case: str, dtype: torch.dtype, tmp_path: Path):
    coder, x = coder_of(case, dtype).eval(), batch(dtype)
    coder.save_to_disk(tmp_path / "layers.3.mlp")
    for loaded in (
        SparseCoder.load_from_disk(tmp_path / "layers.3.mlp"),
        SparseCoder.load_many(str(tmp_path), local=True)["layers.3.mlp"],
        BinarySparseCoder.load_from_disk(tmp_path / "layers.3.mlp"),
    ):
        loaded.eval()
        assert type(loaded) is RefinedSparseCoder
        assert loaded.cfg == coder.cfg
        assert loaded.dtype == loaded.flip_price.dtype == dtype
        assert torch.equal(dense_codes(loaded, x), dense_codes(coder, x))
        assert torch.equal(loaded(x).sae_out, coder(x).sae_out)


def test_the_files_of_other_coders_hold_nothing_of_refined_ones(tmp_path: Path):
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K)
    coder = SparseCoder(D_IN, config)
    assert type(coder) is BinarySparseCoder
    coder.save_to_disk(tmp_path)
    stored = json.loads((tmp_path / "cfg.json").read_text())
    assert not stored.keys() & {"refine_passes", "cost_of_bit"}
    assert "flip_price" not in load_file(tmp_path / "sae.safetensors")
    assert SparseCoder.load_from_disk(tmp_path).cfg == config


def test_a_file_without_prices_is_not_taken_for_a_refined_coder(tmp_path: Path):
    coder_of().save_to_disk(tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    del tensors["flip_price"]
    save_file(tensors, tmp_path / "sae.safetensors")
    with pytest.raises(RuntimeError, match="flip_price"):
        SparseCoder.load_from_disk(tmp_path)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"skip autoencoder"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_hosts_have_the_same_codes_and_outputs(case: str, dtype: torch.dtype):
    coder, x = coder_of(case, dtype).eval(), batch(dtype)
    sae = coder_to_saelens(coder, "layers.3.mlp", "model")
    assert sae.cfg.architecture() == "binary_refined"
    assert torch.equal(sae.encode(x), dense_codes(coder, x))
    torch.testing.assert_close(sae(x), coder(x).sae_out)
    back = coder_to_sparsify(sae)
    assert type(back) is RefinedSparseCoder
    assert torch.equal(dense_codes(back, x), dense_codes(coder, x))
    torch.testing.assert_close(back.state_dict(), coder.state_dict(), atol=0, rtol=0)


def test_a_coder_that_was_refined_after_training_loses_the_losses_of_that_training():
    losses: dict[str, Any] = {"entropy_alpha": 1e-3, "multi_topk": True, "dense_alpha": 4e-3}
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, **losses)
    plain = sparsify.from_coder(SparseCoder(D_IN, config))
    shape = replace(plain.shape, refine_passes=2)
    tensors = plain.tensors | {"flip_price": torch.rand(LATENTS)}
    coder = sparsify.to_coder(replace(plain, shape=shape, tensors=tensors))
    assert type(coder) is RefinedSparseCoder
    assert coder.cfg.entropy_alpha == coder.cfg.multi_topk == 0
    assert coder.cfg.dense_alpha == 4e-3
    assert torch.equal(coder.flip_price, tensors["flip_price"])


def test_a_class_that_does_not_suit_the_config_is_refused():
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K)
    with pytest.raises(ValueError, match=r"refine_passes=0.*BinarySparseCoder"):
        RefinedSparseCoder(D_IN, config)
    config.refine_passes = 2
    assert type(BinarySparseCoder(D_IN, config)) is RefinedSparseCoder


def test_a_coder_without_decoder_is_refused(tmp_path: Path):
    coder_of().save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"decoder=False with refine_passes=2.*decoder=True"):
        SparseCoder.load_from_disk(tmp_path, decoder=False)
