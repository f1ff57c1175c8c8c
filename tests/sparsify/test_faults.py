"""What goes wrong in training is noticed, and does no harm."""

from pathlib import Path

import pytest
import torch

from tests.sparsify.test_coder import TOKENS, batch, coder_of, each_activation


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
    """sparsify's Trainer gives each part the whole batch's variance, NaN where a token of it is."""
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


def test_a_firing_collapse_is_warned_of(caplog: pytest.LogCaptureFixture):
    coder = coder_of("binary")
    with torch.no_grad():
        coder.encoder.bias.fill_(-100.0)
    for step in (99, 100):
        assert not caplog.records
        coder.progress.step = step
        coder(*batch())
    assert "Training step 100: 0 of 128 latents are active" in caplog.text
