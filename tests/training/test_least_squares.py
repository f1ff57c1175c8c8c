import pytest
import torch
from torch import Tensor

from sae_binary_ext.training.least_squares import DecoderFit

LATENTS, D_OUT, TOKENS = 12, 5, 200
SILENT = 3


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (one latent never fires), targets, and the weight and bias of an old decoder."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(TOKENS, LATENTS, generator=generator) < 0.3
    active[:, SILENT] = False
    target = torch.randn(TOKENS, D_OUT, generator=generator, dtype=torch.float64) + 2
    weight = torch.randn(LATENTS, D_OUT, generator=generator, dtype=torch.float64)
    return active, target, weight, torch.randn(D_OUT, generator=generator, dtype=torch.float64)


def fitted(active: Tensor, target: Tensor) -> DecoderFit:
    fit = DecoderFit(LATENTS, D_OUT)
    for codes, wanted in zip(active.split(64), target.split(64), strict=True):
        fit.add(codes, wanted)
    return fit


@pytest.mark.parametrize("pull", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("fits_bias", [True, False])
def test_no_slope_is_left_at_the_solution(pull: float, fits_bias: bool):
    active, target, before, bias = data()
    weight, fitted_bias = fitted(active, target).solve(before, bias, pull, fits_bias)

    weight.requires_grad_()
    fitted_bias = fitted_bias.detach().requires_grad_()
    error = (target - active.double() @ weight - fitted_bias).square().sum()
    (error + pull * (weight - before).square().sum()).backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-8, rtol=0)
    if fits_bias:
        torch.testing.assert_close(fitted_bias.grad, torch.zeros(D_OUT).double(), atol=1e-8, rtol=0)
    else:
        assert torch.equal(fitted_bias, bias)


def test_a_latent_that_never_fires_keeps_its_row():
    active, target, before, bias = data()
    weight, _ = fitted(active, target).solve(before.float(), bias.float(), 1.0, True)
    assert weight.dtype == torch.float32
    assert torch.equal(weight[SILENT], before[SILENT].float())
    assert not torch.equal(weight[0], before[0].float())


def test_a_decoder_that_made_the_targets_is_found():
    active, _, wanted, bias = data()
    target = active.double() @ wanted + bias
    weight, fitted_bias = fitted(active, target).solve(wanted * 0, bias * 0, 1e-9, True)
    fires = torch.arange(LATENTS) != SILENT
    torch.testing.assert_close(weight[fires], wanted[fires])
    torch.testing.assert_close(fitted_bias, bias)


def test_counts_stay_exact_beyond_what_float32_can_count():
    fit = DecoderFit(LATENTS, D_OUT)
    fit.counts += 2**24
    active, target, _, _ = data()
    fit.add(active, target)
    expected = active.long().T @ active.long() + 2**24
    assert torch.equal(fit.counts.triu(), expected.int().triu())


@pytest.mark.parametrize("fits_bias", [True, False])
def test_the_two_fvus_are_those_of_the_decoders(fits_bias: bool):
    """The decoder's target may be what a skip connection leaves of the output."""
    active, target, weight, bias = data()
    output = target + torch.randn(D_OUT).double() * active[:, :1]
    fit = DecoderFit(LATENTS, D_OUT)
    for part in torch.arange(TOKENS).split(64):
        fit.add(active[part], target[part], output[part])

    def fvu() -> float:
        error = (target - active.double() @ weight - bias).square().sum()
        return (error / (output - output.mean(0)).square().sum()).item()

    before = fvu()
    done = fit.replace(weight, bias, fits_bias=fits_bias)
    assert done.tokens == TOKENS
    assert done.fvu_before == pytest.approx(before, rel=1e-9)
    assert done.fvu_after == pytest.approx(fvu(), rel=1e-9)
    assert done.fvu_after < done.fvu_before
