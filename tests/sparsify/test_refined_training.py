"""Refined coders in sparsify's Trainer: what a run reaches, its gradients, going on, and refits."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from sparsify import SparseCoder, SparseCoderConfig, Trainer
from torch import Tensor
from torch import distributed as dist

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.coding.forms import refine
from sae_binary_ext.measure import measure
from sae_binary_ext.sparsify import BinarySparseCoderConfig, RefinedSparseCoder
from tests.sparsify.test_resuming import assert_same, killed_at
from tests.sparsify.trainers import HOOKPOINT, coder_in, gradients_of_first_step, trainer_on

REFINED: dict[str, Any] = {"activation": "binary", "ste_temperature": 0.5, "refine_passes": 2}
SIZE, ROW = 64, 10


@pytest.fixture
def activations() -> Tensor:
    return torch.randn(300, 8) + 0.5


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(0, 300, (24, ROW))


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of one rank, so that DistributedDataParallel wraps the coders."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def start(
    activations: Tensor, rows: Tensor, output: Path, fields: dict[str, Any], **settings: Any
) -> Trainer:
    sae = BinarySparseCoderConfig(**{"num_latents": SIZE, "k": 4} | fields)
    return trainer_on(activations, rows, sae, output, **{"batch_size": 4} | settings)


def saved_in(output: Path) -> SparseCoder:
    """The coder that a Trainer has saved: with signum, another than the one that it trains."""
    return SparseCoder.load_from_disk(output / "run" / HOOKPOINT)


@torch.no_grad()
def fvu_and_bits(coder: SparseCoder, x: Tensor) -> tuple[float, float]:
    """FVU of x [tokens, d_in], and entropy of independent latents with the rates on x."""
    coder.eval()
    rates = codes_of(coder, x).mean(0)
    return coder(x).fvu.item(), bernoulli_entropy(rates).sum().item()


def codes_of(coder: SparseCoder, x: Tensor) -> Tensor:
    acts, index, pre = coder.encode(x)
    return torch.zeros_like(pre).scatter_(-1, index, acts)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 3e-3), ("signum", None)])
def test_refined_codes_have_less_error_at_no_more_bits(
    optimizer: str, lr: float | None, clustered_activations: Tensor, tmp_path: Path
):
    rows = torch.randint(0, len(clustered_activations), (8 * 150, 32))
    found = {}
    for name, fields in {
        "linear": {"entropy_alpha": 2e-3, "refine_passes": 0},
        "refined": {"cost_of_bit": 8e-3},
    }.items():
        trainer = start(
            clustered_activations,
            rows,
            tmp_path / name,
            REFINED | fields,
            batch_size=8,
            optimizer=optimizer,
            lr=lr,
        )
        trainer.fit()
        found[name] = fvu_and_bits(saved_in(tmp_path / name), clustered_activations)
    assert found["refined"][0] < 0.6 * found["linear"][0]
    assert found["refined"][1] < found["linear"][1]


def test_a_dearer_bit_leaves_fewer_bits(clustered_activations: Tensor, tmp_path: Path):
    rows = torch.randint(0, len(clustered_activations), (8 * 100, 32))
    bits = []
    for cost in (4e-4, 1e-2):
        fields = REFINED | {"cost_of_bit": cost}
        trainer = start(clustered_activations, rows, tmp_path / str(cost), fields, batch_size=8)
        trainer.fit()
        bits.append(fvu_and_bits(saved_in(tmp_path / str(cost)), clustered_activations)[1])
    assert bits[1] < 0.8 * bits[0]


def check_gradients(
    activations: Tensor, rows: Tensor, output: Path, parts: int, accumulate: int
) -> None:
    """Compare the first step's gradients with those of its refined codes, for any parts.

    The first batch's own prices are used, as each forward has set them.
    """
    rows = rows[:8]
    trainer = start(
        activations,
        rows,
        output,
        REFINED | {"initial_firing_rate": 0.0, "encoder_trains_b_dec": True},
        batch_size=len(rows) // accumulate,
        grad_acc_steps=accumulate,
        micro_acc_steps=parts,
        optimizer="adam",
        lr=1e-12,
    )
    coder = coder_in(trainer)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: Any, __: Any, named: dict[str, Tensor], ___: Any) -> None:
        seen.append((named["x"], coder.flip_price.clone()))

    coder.register_forward_hook(note, with_kwargs=True)
    ours = gradients_of_first_step(trainer)
    assert len(seen) == parts * accumulate

    weight, bias = coder.decoder_weight().detach().clone(), coder.b_dec.detach().clone()
    learned = [weight.requires_grad_(), bias.requires_grad_()]
    encoder = coder.encoder.weight.detach().clone().requires_grad_()
    total = torch.zeros(())
    for number, (x, price) in enumerate(seen):
        whole = torch.cat([x for x, _ in seen[number // parts * parts :][:parts]])
        pre = (x - bias) @ encoder.T + coder.encoder.bias.detach()
        margin = pre - coder.log_threshold.detach().exp()
        target = (x - bias).detach()
        linear = (margin > 0).to(x)
        codes = refine(linear, target, weight.detach(), price, coder.cfg.refine_passes)
        error = (codes @ weight + bias - x).square().sum()
        total = total + error / (whole - whole.mean(0)).square().sum()
        likelihood = torch.where(codes > 0, margin / 0.5, -margin / 0.5)
        total = total - torch.nn.functional.logsigmoid(likelihood).sum() / len(whole)
    expected = torch.autograd.grad(total / (parts * accumulate), [*learned, encoder])
    for name, gradient in zip(("W_dec", "b_dec", "encoder.weight"), expected, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_do_not_depend_on_the_parts(
    accumulate: int, parts: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    check_gradients(activations, rows, tmp_path, parts, accumulate)


@pytest.mark.usefixtures("one_rank")
def test_gradients_are_the_same_on_ranks(activations: Tensor, rows: Tensor, tmp_path: Path):
    check_gradients(activations, rows, tmp_path, parts=2, accumulate=1)


@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
def test_the_decoder_learns_from_the_model_s_loss_too(
    loss_fn: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    trainer = start(activations, rows, tmp_path, REFINED, loss_fn=loss_fn)
    found = gradients_of_first_step(trainer)
    assert all(found[name].abs().sum() > 0 for name, _ in coder_in(trainer).named_parameters())


@pytest.mark.parametrize("optimizer", ["signum", "muon", "adam"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    optimizer: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    def trainer(folder: str) -> Trainer:
        settings: dict[str, Any] = {"batch_size": 2, "init_seeds": [0, 1], "save_every": 6}
        settings |= {"auxk_alpha": 0.5, "dead_feature_threshold": 60, "optimizer": optimizer}
        fields = REFINED | {"refit_tokens": 40}
        return start(activations, rows, tmp_path / folder, fields, **settings)

    unbroken = trainer("unbroken")
    unbroken.fit()
    killed_at(trainer("broken"), 9)
    going_on = trainer("broken")
    going_on.load_state(str(tmp_path / "broken" / "run"))
    assert 0 < going_on.global_step < 9
    going_on.fit()
    assert_same(going_on, unbroken)
    assert all(type(coder) is RefinedSparseCoder for coder in going_on.saes.values())


def test_the_decoder_is_refitted_to_refined_codes(
    activations: Tensor, rows: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    errors = []
    for refit in (0, 1000):
        trainer = start(activations, rows, tmp_path / str(refit), REFINED | {"refit_tokens": refit})
        trainer.fit()
        errors.append(fvu_and_bits(saved_in(tmp_path / str(refit)), activations[rows.flatten()])[0])
    assert "decoder refitted on 240 tokens" in caplog.text
    assert errors[1] < errors[0]


def test_a_step_makes_fewer_passes_than_the_refit_and_the_coder(
    activations: Tensor, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []

    def counting(*given: Any) -> Tensor:
        made.append(given[-1])
        return refine(*given)

    monkeypatch.setattr("sae_binary_ext.sparsify.refined_coder.refine", counting)
    fields = REFINED | {"refine_passes": 5, "training_passes": 2, "refit_tokens": 1000}
    trainer = start(activations, rows, tmp_path, fields, batch_size=len(rows) // 2)
    trainer.fit()
    assert made[:2] == [2, 2]
    assert set(made[2:]) == {5}
    coder_in(trainer).cfg.training_passes = 7
    coder_in(trainer).train()(activations)
    assert made[-1] == 5


@pytest.mark.parametrize("before", ["stock", "linear", "refined"])
def test_training_starts_from_any_coder(
    before: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    first: dict[str, Any] = {
        "stock": SparseCoderConfig(num_latents=SIZE, k=4),
        "linear": BinarySparseCoderConfig(num_latents=SIZE, activation="binary"),
        "refined": BinarySparseCoderConfig(num_latents=SIZE, **REFINED),
    }
    trainer_on(activations, rows, first[before], tmp_path / "first", batch_size=4).fit()
    folder = tmp_path / "first" / "run"
    old = SparseCoder.load_from_disk(folder / HOOKPOINT)
    settings: dict[str, Any] = {"finetune": str(folder), "optimizer": "adam", "lr": 1e-12}
    trainer = start(activations, rows[:4], tmp_path / "second", REFINED, **settings)
    coder = coder_in(trainer)
    load_model(coder, folder / HOOKPOINT / "sae.safetensors")  # as sparsify's command line does
    trainer.fit()
    directions = (torch.nn.functional.normalize(each.encoder.weight) for each in (old, coder))
    torch.testing.assert_close(*directions)
    assert coder.flip_price.any()
    assert fvu_and_bits(coder, activations)[0] < 1


def test_batches_without_usable_tokens_spoil_nothing(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    activations[3] = torch.nan
    data = torch.cat([rows, 0 * rows, rows])
    data[-1, :3] = 3
    fields = REFINED | {"skip_non_finite": True}
    trainer = start(activations, data, tmp_path, fields, batch_size=24, exclude_tokens=[0])
    trainer.fit()
    coder = coder_in(trainer)
    assert coder.skipped_tokens > 0
    assert all(values.isfinite().all() for values in coder.state_dict().values())


def test_a_trained_coder_measures_the_same_in_saelens(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    trainer = start(activations, rows, tmp_path, REFINED)
    trainer.fit()
    sae = load_coder(tmp_path / "run" / HOOKPOINT, "layers.0.mlp")
    assert sae.cfg.architecture() == "binary_refined"
    saved = saved_in(tmp_path)
    assert torch.equal(sae.encode(activations), codes_of(saved, activations))
    fvu, bits = fvu_and_bits(saved, activations)
    figures = measure(sae, activations, activations)
    assert (figures.fvu, figures.entropy_bits) == pytest.approx((fvu, bits), rel=1e-4)
