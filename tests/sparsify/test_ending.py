"""refit_tokens refits the decoder at the end of sparsify's Trainer."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import SparseCoder, Trainer
from torch import Tensor

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.measure import measure, refit_decoder
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.sparsify.test_resuming import killed_at
from tests.sparsify.trainers import HOOKPOINT, coder_in, trainer_on

D_IN, WIDTH, ROWS, ROW = 8, 64, 24, 10
EXCLUDED = 7
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "b_dec not subtracted": {"subtract_b_dec": False},
    "thresholds": {"activation": "binary", "entropy_alpha": 1e-3},
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
}


@pytest.fixture
def activations() -> Tensor:
    return torch.randn(300, D_IN) + 1


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(0, 300, (ROWS, ROW))


def trained(
    activations: Tensor, rows: Tensor, output: Path, refit: int | None, **settings: Any
) -> Trainer:
    fields = settings.pop("fields", {})
    sae = BinarySparseCoderConfig(num_latents=WIDTH, k=4, refit_tokens=refit, **fields)
    defaults: dict[str, Any] = {"batch_size": 4, "exclude_tokens": [EXCLUDED]}
    trainer = trainer_on(activations, rows, sae, output, **defaults | settings)
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("kind", "optimizer"), [*((kind, "signum") for kind in KINDS), ("autoencoder", "adam")]
)
def test_the_saved_decoder_is_the_commands_on_the_last_rows(
    kind: str,
    optimizer: str,
    activations: Tensor,
    rows: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {"optimizer": optimizer, "fields": KINDS[kind]}
    trained(activations, rows, tmp_path / "plain", None, **settings)
    assert "refitted" not in caplog.text
    trainer = trained(activations, rows, tmp_path / "refitted", 50, **settings)

    # Tokens are read in whole batches of four rows, the last rows first.
    ids = rows[-8:].flatten()
    x = activations[ids[ids != EXCLUDED]]
    plain, refitted = (
        load_coder(tmp_path / name / "run" / HOOKPOINT, "layers.0.mlp")
        for name in ("plain", "refitted")
    )
    assert not torch.equal(plain.W_dec, refitted.W_dec)
    before = measure(plain, x, x).fvu
    refit_decoder(plain, [(x, x)])
    torch.testing.assert_close(refitted.state_dict(), plain.state_dict())
    after = measure(refitted, x, x).fvu
    assert (
        f"{HOOKPOINT}: decoder refitted on {len(x)} tokens, FVU {before:.4f} -> {after:.4f}"
        in caplog.text
    )
    assert after < before

    saved = SparseCoder.load_from_disk(tmp_path / "refitted" / "run" / HOOKPOINT)
    for name, values in saved.state_dict().items():
        torch.testing.assert_close(coder_in(trainer).state_dict()[name], values)


@pytest.mark.parametrize("optimizer", ["signum", "adam"])
def test_a_resumed_run_ends_with_the_decoder_of_an_unbroken_one(
    optimizer: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    def start(folder: str) -> Trainer:
        sae = BinarySparseCoderConfig(num_latents=WIDTH, k=4, refit_tokens=60)
        settings: dict[str, Any] = {"init_seeds": [0, 1], "batch_size": 2, "save_every": 6}
        return trainer_on(
            activations, rows, sae, tmp_path / folder, optimizer=optimizer, **settings
        )

    unbroken = start("unbroken")
    unbroken.fit()
    killed_at(start("broken"), 9)
    going_on = start("broken")
    going_on.load_state(str(tmp_path / "broken" / "run"))
    assert 0 < going_on.global_step < 9
    going_on.fit()
    for name, coder in unbroken.saes.items():
        assert all(
            torch.equal(values, going_on.saes[name].state_dict()[key])
            for key, values in coder.state_dict().items()
        )


@pytest.mark.parametrize("kind", ["autoencoder", "skip transcoder"])
def test_a_refitted_run_trains_on_from_its_decoder(
    kind: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    """A resumed run with more rows starts from the refitted decoder, also without a schedule."""
    trained(activations, rows[:12], tmp_path, 60, lr=1e-9, fields=KINDS[kind])
    saved: Any = SparseCoder.load_from_disk(tmp_path / "run" / HOOKPOINT)
    sae = BinarySparseCoderConfig(num_latents=WIDTH, k=4, refit_tokens=0, **KINDS[kind])
    trainer = trainer_on(activations, rows, sae, tmp_path, batch_size=4, lr=1e-9)
    trainer.load_state(str(tmp_path / "run"))
    trainer.fit()
    names = ("W_dec", "W_skip") if kind == "skip transcoder" else ("W_dec",)
    for name in names:
        torch.testing.assert_close(getattr(coder_in(trainer), name), getattr(saved, name))


def test_tokens_that_are_not_finite_are_left_out(activations: Tensor, rows: Tensor, tmp_path: Path):
    coders = []
    for spoilt in (False, True):
        seen = activations.clone()
        ids = rows.clamp_min(1)
        if spoilt:
            seen[0] = torch.nan
            ids = torch.cat([ids, torch.zeros(1, ROW, dtype=torch.int64)])
        fields = {"skip_non_finite": True}
        folder = tmp_path / str(spoilt)
        trainer = trained(
            seen, ids, folder, 1000, fields=fields, batch_size=5, optimizer="adam", lr=1e-9
        )
        coders.append(coder_in(trainer).W_dec)
    torch.testing.assert_close(*coders, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss_fn": "ce"}, "refit_tokens=60 with loss_fn='ce'.*Give refit_tokens=0"),
        ({"loss_fn": "kl"}, "refit_tokens=60 with loss_fn='kl'"),
        ({"distribute_modules": True}, "refit_tokens=60 with distribute_modules=True"),
        ({"fields": {"tied_decoder": True}}, "refit_tokens=60 with tied_decoder=True"),
    ],
)
def test_what_cannot_be_refitted_is_refused_before_training(
    settings: dict[str, Any], problem: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    with pytest.raises(ValueError, match=problem):
        trained(activations, rows, tmp_path, 60, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tokens", [-1, 0.5, float("nan")])
def test_a_wrong_number_of_tokens_is_named(tokens: Any):
    with pytest.raises(ValueError, match=f"refit_tokens={tokens}.*at least 0"):
        BinarySparseCoderConfig(refit_tokens=tokens)
