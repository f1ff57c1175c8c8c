"""The default learning rate scales with the size of the activations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.sparsify.trainers import coder_in, trainer_on

SIZES: dict[str, Any] = {"num_latents": 64, "k": 4}


@pytest.fixture(scope="module")
def activations() -> Tensor:
    """Activations, [512, 8]: sums of a few of 24 directions, with standard deviation 1."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(24, 8, generator=generator)
    present = (torch.rand(512, 24, generator=generator) < 0.1).float()
    values = present @ directions + 0.05 * torch.randn(512, 8, generator=generator) + 0.3
    return values / values.std(0, correction=0).mean()


def trained_fvu(activations: Tensor, output: Path, sae: Any, **settings: Any) -> float:
    rows = torch.randint(0, 512, (480, 16), generator=torch.Generator().manual_seed(2))
    trainer = trainer_on(activations, rows, sae, output, batch_size=8, **settings)
    trainer.fit()
    with torch.no_grad():
        return coder_in(trainer).eval()(activations).fvu.item()


@pytest.mark.parametrize("optimizer", ["signum", "adam", "muon"])
@pytest.mark.parametrize("scale", [0.02, 50.0])
def test_a_default_run_ends_alike_at_every_scale(
    scale: float, optimizer: str, activations: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(**SIZES)
    one = trained_fvu(activations, tmp_path, sae, optimizer=optimizer)
    other = trained_fvu(scale * activations, tmp_path, sae, optimizer=optimizer)
    assert other == pytest.approx(one, abs=0.03)
    assert one < 0.6


@pytest.mark.parametrize("skip", [False, True])
def test_each_parameter_s_rate_is_in_its_own_unit(skip: bool, activations: Tensor, tmp_path: Path):
    sae = BinarySparseCoderConfig(**SIZES, transcode=skip, skip_connection=skip)
    trainer = trainer_on(0.1 * activations, torch.arange(512).view(32, 16), sae, tmp_path)
    coder = coder_in(trainer)
    base = trainer.optimizers[0].param_groups[0]["lr"]
    trainer.fit()
    names = {parameter: name for name, parameter in coder.named_parameters()}
    rates = {
        names[group["params"][0]]: group["lr"] / base
        for group in trainer.optimizers[0].param_groups
    }
    expected = dict.fromkeys(names.values(), 1.0)
    expected |= {"encoder.weight": 10.0, "W_dec": 0.1, "b_dec": 0.1}
    assert rates == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "settings"), [({}, {"lr": 1e-3}), ({"initial_firing_rate": 0.0}, {})]
)
def test_a_rate_that_was_given_and_the_papers_are_absolute(
    fields: dict[str, Any], settings: dict[str, Any], activations: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(**SIZES, **fields)
    rows = torch.arange(512).view(32, 16)
    trainer = trainer_on(0.1 * activations, rows, sae, tmp_path, **settings)
    base = trainer.optimizers[0].param_groups[0]["lr"]
    trainer.fit()
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {base}
