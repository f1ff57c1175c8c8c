"""Faults in training are noticed and spoil no coder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.sparsify.test_coder import TOKENS, batch, coder_of, each_activation
from tests.sparsify.trainers import trainer_on


@pytest.mark.parametrize("transcode", [False, True])
@each_activation
def test_tokens_that_are_not_finite_are_left_out_if_asked(activation: str, transcode: bool):
    coder = coder_of(activation, skip_non_finite=True, transcode=transcode)
    x, y = batch()
    spoilt = x.clone(), y.clone()
    spoilt[0][3, 1], spoilt[1][7, 0] = float("nan"), float("inf")
    kept = [row for row in range(TOKENS) if row not in (3, 7)]
    coder.progress.noise_seed = 0
    ours, theirs = coder(*spoilt), coder(x[kept], y[kept])
    assert ours.fvu == theirs.fvu
    assert torch.equal(ours.sae_out[kept], theirs.sae_out)
    assert not ours.sae_out[[3, 7]].any()
    assert coder.skipped_tokens == 2


def test_a_batch_in_parts_is_weighed_by_its_finite_tokens():
    """sparsify's Trainer gives each part the whole batch's variance, NaN if a token has a NaN."""
    coder = coder_of(skip_non_finite=True)
    x, _ = batch()
    coder.progress.parts = 2
    part, whole = coder(x, total_variance=torch.tensor(float("nan"))), coder(x)
    assert part.fvu.item() == pytest.approx(whole.fvu.item() / 2)
    given = coder(x, total_variance=torch.tensor(7.0))
    assert given.fvu.item() == pytest.approx((x - whole.sae_out).square().sum().item() / 7)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    coder = coder_of()
    coder.save_to_disk(tmp_path)
    before = (tmp_path / "sae.safetensors").read_bytes()
    coder.encoder.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"encoder\.bias holds NaN or infinite.*learning rate"):
        coder.save_to_disk(tmp_path)
    assert (tmp_path / "sae.safetensors").read_bytes() == before


@pytest.mark.parametrize(("loss_fn", "spoilt"), [("fvu", 0), ("fvu", 1), ("ce", 0)])
def test_a_trainer_saves_no_spoilt_coder_as_its_best(loss_fn: str, spoilt: int, tmp_path: Path):
    """If one coder holds NaN, save_best writes no coder at all, for any loss."""
    rows = torch.arange(40).view(20, 2)
    settings: dict[str, Any] = {"save_best": True, "loss_fn": loss_fn, "batch_size": 4, "lr": 1e-3}
    if loss_fn == "fvu":
        settings["init_seeds"] = [0, 1]
    sae = BinarySparseCoderConfig(num_latents=64, k=4)
    trainer = trainer_on(torch.randn(40, 16), rows, sae, tmp_path, **settings)
    trainer.fit()
    files = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert any("best" in file.parts for file in files)
    before = {file: file.read_bytes() for file in files}

    list(trainer.saes.values())[spoilt].W_dec.data[3] = float("nan")
    for loss in (-1.0, float("nan")):
        losses = dict.fromkeys(trainer.saes, loss) if loss_fn == "fvu" else loss
        with pytest.raises(ValueError, match=r"W_dec holds NaN or infinite"):
            trainer.save_best(losses)
    with pytest.raises(ValueError, match=r"W_dec holds NaN or infinite"):
        trainer.save()
    assert {file: file.read_bytes() for file in files} == before


def test_a_firing_collapse_is_warned_of(caplog: pytest.LogCaptureFixture):
    coder = coder_of("binary")
    with torch.no_grad():
        coder.encoder.bias.fill_(-100.0)
    for step in (99, 100):
        assert not caplog.records
        coder.progress.step = step
        coder(*batch())
    assert "Training step 100: 0 of 128 latents are active" in caplog.text
