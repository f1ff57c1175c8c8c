"""Training of refined coders: what each parameter learns from, prices, and going on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.coding import follow_prices, price_of_bits, total_variance
from sae_binary_ext.coding.forms import refine
from sae_binary_ext.saelens import RefinedSAE, RefinedTrainingSAE, RefinedTrainingSAEConfig
from sae_binary_ext.saelens.refined import RATE_TOKENS
from tests.saelens.helpers import BATCH, fvu, trainer_for

CONFIG = RefinedTrainingSAEConfig(d_in=12, d_sae=48, apply_b_dec_to_input=False)


def started(batch: Tensor, **fields: Any) -> RefinedTrainingSAE:
    """A coder after its first batch."""
    torch.manual_seed(0)
    coder: Any = TrainingSAE.from_dict(replace(CONFIG, **fields).to_dict())
    coder.fit_to_first_batch(batch)
    return coder


def rows() -> Tensor:
    return torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(1))


def step(coder: RefinedTrainingSAE, batch: Tensor) -> Any:
    return coder.training_forward_pass(TrainStepInput(batch, {}, None, 0, False))


def test_decoder_and_encoder_learn_from_refined_codes():
    coder, x = started(rows(), refine_passes=4, training_passes=4), rows()
    codes = coder.encode(x)
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    step(coder, x).loss.backward()

    weight, bias = (before[name].requires_grad_() for name in ("W_dec", "b_dec"))
    (codes @ weight + bias - x).square().sum(1).mean().backward()
    torch.testing.assert_close(coder.W_dec.grad, weight.grad)
    torch.testing.assert_close(coder.b_dec.grad, bias.grad)

    # The derivative of the logistic's cross-entropy is its probability less the code.
    pre = x @ before["W_enc"] + before["b_enc"]
    margin = pre - before["log_threshold"].exp()
    error = (margin / coder.cfg.surrogate_temperature).sigmoid() - codes
    slope = error / coder.cfg.surrogate_temperature / len(x)
    torch.testing.assert_close(coder.b_enc.grad, slope.sum(0))
    torch.testing.assert_close(coder.W_enc.grad, x.T @ slope)


def test_a_step_with_a_hook_is_the_same_step():
    losses = []
    for hooked in (False, True):
        coder = started(rows(), training_passes=1)
        if hooked:
            coder.hook_sae_acts_post.add_hook(lambda codes, hook: codes)
        out = step(coder, rows())
        out.loss.backward()
        losses.append((out.loss, coder.W_enc.grad, coder.W_dec.grad))
    torch.testing.assert_close(*losses)


def test_a_step_makes_fewer_passes_than_the_coder_outside_of_it(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def counting(*given: Any) -> Tensor:
        made.append(given[-1])
        return refine(*given)

    monkeypatch.setattr("sae_binary_ext.saelens.refined.refine", counting)
    coder = started(rows(), refine_passes=5, training_passes=2)
    step(coder, rows())
    coder.encode(rows())
    coder.cfg.training_passes = 7
    step(coder, rows())
    assert made == [2, 5, 5]


@pytest.mark.parametrize("dense_coefficient", [0.0, 4e-3])
def test_prices_follow_firing_rates(dense_coefficient: float):
    coder, x = started(rows(), dense_coefficient=dense_coefficient, dense_rate=0.02), rows()
    before, prices = coder.firing_rate.clone(), coder.flip_price.clone()
    # Four times the variance of the first batch.
    fired = step(coder, x := 2 * x).feature_acts.mean(0)
    rate = before + (fired - before) * BATCH / RATE_TOKENS
    torch.testing.assert_close(coder.firing_rate, rate)
    variance = total_variance(x).item()
    price = price_of_bits(rate, coder.cfg.cost_of_bit * variance, RATE_TOKENS)
    extra = dense_coefficient * variance * (rate > 0.02)
    assert (rate > 0.02).any()
    torch.testing.assert_close(coder.flip_price, follow_prices(prices, price + extra, BATCH))
    assert coder.flip_price.norm() < 1.1 * prices.norm()


def test_training_lowers_the_error_and_saves_a_refined_coder(
    clustered_activations: Tensor, tmp_path: Path
):
    short = trainer_for(config_for(clustered_activations), clustered_activations, steps=2).fit()
    coder: Any = trainer_for(
        config_for(clustered_activations), clustered_activations, steps=200
    ).fit()
    assert fvu(coder, clustered_activations) < 0.5 * fvu(short, clustered_activations)
    coder.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is RefinedSAE
    assert torch.equal(loaded.encode(clustered_activations), coder.encode(clustered_activations))


def config_for(activations: Tensor) -> RefinedTrainingSAEConfig:
    return replace(CONFIG, d_in=activations.shape[1])


def test_a_training_checkpoint_loads_with_the_same_codes(tmp_path: Path):
    coder, x = started(rows()), rows()
    step(coder, x)
    coder.save_model(tmp_path)
    for loaded in (SAE.load_from_disk(tmp_path), load_coder(tmp_path)):
        assert torch.equal(loaded.encode(x), coder.encode(x))
    again: Any = TrainingSAE.load_from_disk(tmp_path)
    for name, value in coder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_training_goes_on_from_a_saved_coder_with_the_rates_that_its_prices_tell(tmp_path: Path):
    coder, x = started(rows()), rows()
    step(coder, x)
    told = 1 / (1 + (coder.flip_price / coder.cfg.cost_of_bit / total_variance(x)).exp2())
    torch.testing.assert_close(told, coder.firing_rate, rtol=0.1, atol=0)
    coder.save_inference_model(tmp_path)
    again: Any = TrainingSAE.load_from_disk(tmp_path)
    assert again.firing_rate.isnan().all()
    fired = step(again, x).feature_acts.mean(0)
    expected = told + (fired - told) * BATCH / RATE_TOKENS
    torch.testing.assert_close(again.firing_rate, expected)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"refine_passes": 0}, "refine_passes=0"),
        ({"training_passes": 0}, "training_passes=0"),
        ({"cost_of_bit": -1.0}, "cost_of_bit=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        replace(CONFIG, **fields)
