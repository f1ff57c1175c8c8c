"""Faults in training are noticed, and stop the training or do no harm."""

import pytest
import torch
from torch import Tensor

from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig
from tests.saelens.helpers import fvu, trainer_for

D_IN, D_SAE, K = 16, 128, 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_end_the_run_and_name_the_step(
    bad: float, clustered_activations: Tensor
):
    activations = clustered_activations[:1000].clone()
    activations[3 * 200 + 5, 2] = bad  # a bad value in the fourth batch, step 3
    trainer = trainer_for(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K), activations)
    with pytest.raises(ValueError, match="step 3 "):
        trainer.fit()
    assert all(torch.isfinite(p).all() for p in trainer.sae.parameters())


def test_tokens_that_are_not_finite_are_left_out_if_asked(clustered_activations: Tensor):
    """With skip_non_finite, training and its start equal those on the other tokens only."""
    config = BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, skip_non_finite=True)
    batches = list(clustered_activations[:1000].split(200))
    spoilt = [batch.clone() for batch in batches]
    for number in (0, 3):
        spoilt[number][5, 2], spoilt[number][17, 0] = float("nan"), float("inf")
    kept = [batch[[row for row in range(200) if row not in (5, 17)]] for batch in batches]
    clean = [kept[n] if n in (0, 3) else batch for n, batch in enumerate(batches)]
    skipping, other = (trainer_for(config, clustered_activations) for _ in range(2))
    for ours, theirs in zip(spoilt, clean, strict=True):
        output = skipping.step(ours)
        other.step(theirs)
    assert output.metrics["skipped_tokens"] == 4
    torch.testing.assert_close(skipping.sae.state_dict(), other.sae.state_dict(), rtol=0, atol=0)


def test_a_loss_spike_passes(clustered_activations: Tensor):
    """After one batch that is ten thousand times too large, training ends near its usual result."""
    config = BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
    ends = []
    for loudness in (1.0, 1e4):
        trainer = trainer_for(config, clustered_activations, steps=200)
        for number, batch in enumerate(list(clustered_activations.split(200)) * 10):
            trainer.step(batch * (loudness if number == 100 else 1.0))
        ends.append(fvu(trainer.sae, clustered_activations))
    calm, spiked = ends
    assert spiked < 1.1 * calm < 0.5


def test_a_firing_collapse_is_warned_of(
    clustered_activations: Tensor, caplog: pytest.LogCaptureFixture
):
    """If a far too strong entropy loss silences the latents, the log says so."""
    config = BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, entropy_coefficient=10.0)
    trainer_for(config, clustered_activations, steps=150, lr=3e-2).fit()
    (message,) = (r.getMessage() for r in caplog.records if "latents" in r.getMessage())
    assert message.startswith("Training step 100: 0.0")
    assert "fewer than one" in message
