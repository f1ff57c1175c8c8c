import pytest
import torch
from torch import Tensor

from sae_binary_ext.training.least_squares import DecoderFit

LATENTS, D_OUT, D_SKIP, TOKENS = 12, 5, 4, 200
SILENT = 3


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (one latent never fires), targets, and the weight and bias of an old decoder."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(TOKENS, LATENTS, generator=generator) < 0.3
    active[:, SILENT] = False
    target = torch.randn(TOKENS, D_OUT, generator=generator, dtype=torch.float64) + 2
    weight = torch.randn(LATENTS, D_OUT, generator=generator, dtype=torch.float64)
    return active, target, weight, torch.randn(D_OUT, generator=generator, dtype=torch.float64)


def inputs() -> Tensor:
    """What a skip connection reads."""
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(TOKENS, D_SKIP, generator=generator, dtype=torch.float64) + 1


def fitted(active: Tensor, target: Tensor, x: Tensor | None = None) -> DecoderFit:
    fit = DecoderFit(LATENTS, D_OUT, d_skip=0 if x is None else x.shape[1])
    for part in torch.arange(TOKENS).split(64):
        fit.add(active[part], target[part], None if x is None else x[part])
    return fit


@pytest.mark.parametrize("pull", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("fits_bias", [True, False])
@pytest.mark.parametrize("skips", [True, False])
def test_no_slope_is_left_at_the_solution(pull: float, fits_bias: bool, skips: bool):
    active, target, before, bias = data()
    x = inputs() if skips else inputs()[:, :0]
    before = torch.cat([before, torch.ones(x.shape[1], D_OUT).double()])
    weight, fitted_bias = fitted(active, target, x).solve(before, bias, pull, fits_bias)

    weight.requires_grad_()
    fitted_bias = fitted_bias.detach().requires_grad_()
    columns = torch.cat([active.double(), x], dim=1)
    error = (target - columns @ weight - fitted_bias).square().sum()
    pulls = torch.full((len(before), 1), pull, dtype=torch.float64)
    if skips:
        centred = x - x.mean(0) * fits_bias
        pulls[LATENTS:] *= centred.square().sum(0).mean() / TOKENS
    (error + (pulls * (weight - before).square()).sum()).backward()
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


def test_a_decoder_and_a_skip_connection_that_made_the_targets_are_found():
    active, _, wanted, bias = data()
    x, skip = inputs(), torch.randn(D_OUT, D_SKIP).double()
    target = active.double() @ wanted + x @ skip.T + bias
    weight, found, fitted_bias = wanted * 0, skip * 0, bias * 0
    done = fitted(active, target, x).replace(weight, fitted_bias, found, fits_bias=True, pull=1e-9)
    fires = torch.arange(LATENTS) != SILENT
    torch.testing.assert_close(weight[fires], wanted[fires])
    torch.testing.assert_close(found, skip)
    torch.testing.assert_close(fitted_bias, bias)
    assert done.fvu_after < 1e-9


@pytest.mark.parametrize("fits_bias", [True, False])
@pytest.mark.parametrize("skips", [True, False])
def test_the_two_fvus_are_those_of_the_decoders(fits_bias: bool, skips: bool):
    active, target, weight, bias = data()
    x, skip = (inputs(), torch.randn(D_OUT, D_SKIP).double()) if skips else (None, None)
    fit = fitted(active, target, x)

    def fvu() -> float:
        output = active.double() @ weight + bias
        if x is not None and skip is not None:
            output += x @ skip.T
        error = (target - output).square().sum()
        return (error / (target - target.mean(0)).square().sum()).item()

    before = fvu()
    done = fit.replace(weight, bias, skip, fits_bias=fits_bias)
    assert done.tokens == TOKENS
    assert done.fvu_before == pytest.approx(before, rel=1e-9)
    assert done.fvu_after == pytest.approx(fvu(), rel=1e-9)
    assert done.fvu_after < done.fvu_before
