import math

import pytest
import torch

from sae_binary_ext.coding.encode import binarise, pre_activations
from sae_binary_ext.coding.initialization import fit_decoder, fit_start, sample_rows, starting_rate
from sae_binary_ext.coding.selection import CodeRule


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_every_latent_fires_at_the_wanted_rate_at_any_scale(rate: float, scale: float):
    x = torch.randn(2000, 16) * scale
    log_threshold = torch.full((64,), math.log(0.004))
    rule = CodeRule("threshold")
    start = fit_start(x, torch.randn(16, 64), log_threshold, rule, rate)
    pre = pre_activations(x, start.encoder_weight, start.encoder_bias)
    rates = binarise(pre, log_threshold, rule).mean(0)
    torch.testing.assert_close(rates, torch.full((64,), rate), atol=1e-3, rtol=0)
    projections = x @ start.encoder_weight
    assert projections.std().item() == pytest.approx(1.0, rel=1e-3)


def test_the_decoder_has_the_best_scale():
    x = torch.randn(500, 16) * 7
    log_threshold = torch.full((64,), -5.0)
    rule = CodeRule("topk", 8)
    start = fit_start(x, torch.randn(16, 64), log_threshold, rule, 8 / 64)
    pre = pre_activations(x, start.encoder_weight, start.encoder_bias)
    codes = binarise(pre, log_threshold, rule)

    def error(factor: float) -> float:
        return (codes @ start.decoder_weight * factor - x).square().sum().item()

    assert error(1.0) < min(error(0.99), error(1.01), x.square().sum().item())


def test_a_decoder_of_other_targets_is_the_mean_when_a_latent_fires_at_the_best_scale():
    codes = (torch.rand(400, 12) < 0.2).double()
    codes[:, 5] = 0  # never fires
    target = 30 * torch.randn(400, 7, dtype=torch.float64) + codes @ torch.randn(12, 7).double() + 9
    weight, bias = fit_decoder(codes, target)

    assert weight.dtype == bias.dtype == torch.float64
    for latent in range(12):
        fired = target[codes[:, latent] > 0]
        expected = (fired - target.mean(0)).sum(0) / max(len(fired), 1)
        cosine = torch.cosine_similarity(weight[latent], expected, dim=0).item()
        assert cosine == pytest.approx(0.0 if latent == 5 else 1.0, abs=1e-5)
    predicted = codes @ weight + bias
    torch.testing.assert_close(predicted.mean(0), target.mean(0), rtol=1e-4, atol=1e-4)

    def error(factor: float) -> float:
        moved = target.mean(0) + factor * (predicted - predicted.mean(0))
        return (moved - target).square().sum().item()

    assert error(1.0) < min(error(0.99), error(1.01), error(0.0))


def test_a_batch_of_two_tokens_is_enough():
    start = fit_start(
        torch.randn(2, 4), torch.randn(4, 8), torch.zeros(8), CodeRule("threshold"), 0.01
    )
    assert all(torch.isfinite(value).all() for value in vars(start).values())


def test_the_mean_of_the_inputs_has_no_part_in_the_scale():
    x = torch.randn(2000, 16)
    log_threshold, directions, rule = torch.zeros(64), torch.randn(16, 64), CodeRule("threshold")
    near = fit_start(x, directions, log_threshold, rule, 0.1)
    far = fit_start(x + 50.0, directions, log_threshold, rule, 0.1)
    torch.testing.assert_close(far.encoder_weight, near.encoder_weight)
    pre = pre_activations(x + 50.0, far.encoder_weight, far.encoder_bias)
    rates = binarise(pre, log_threshold, rule).mean(0)
    torch.testing.assert_close(rates, torch.full((64,), 0.1), atol=1e-3, rtol=0)


def test_no_token_starts_at_its_threshold():
    """At the threshold, rounding would decide whether a token fires, and two runs would differ."""
    x = torch.randn(500, 16)
    log_threshold, rule = torch.zeros(64), CodeRule("threshold")
    start = fit_start(x, torch.randn(16, 64), log_threshold, rule, 0.1)
    margin = pre_activations(x, start.encoder_weight, start.encoder_bias) - 1
    assert margin.abs().min() > 1e-6


def test_a_large_batch_is_sampled_evenly():
    assert len(sample_rows(torch.zeros(4096, 1))) == 4096
    rows = sample_rows(torch.arange(10_000.0)[:, None])
    assert len(rows) == 3334
    assert rows.squeeze().diff().unique().tolist() == [3.0]


def test_the_starting_rate_follows_from_the_rule():
    assert starting_rate(CodeRule("topk", 32), 4096) == 0.05
    assert starting_rate(CodeRule("groupmax", 32), 256) == 32 / 256
    assert starting_rate(CodeRule("threshold", 32), 4096) == 0.02
