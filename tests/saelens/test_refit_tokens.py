"""refit_tokens refits the decoder at the end of training in SAELens' own trainers."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from torch import Tensor

from sae_binary_ext.measure import measure, refit_decoder
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saelens.pairs import split_pairs
from tests.saelens.helpers import BATCH, trainer_for
from tests.saelens.test_estimates import pair_trainer

STEPS = 12
# The trainer reads whole batches, so 250 tokens are two of them.
REFIT, READ = 250, 2 * BATCH
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 48, "k": 6, "lr": 3e-3}
CODERS: dict[str, dict[str, Any]] = {
    "binary": {},
    "b_dec not subtracted": {"apply_b_dec_to_input": False},
    "scaled": {"normalize_activations": "expected_average_only_in"},
    "whitened": {"normalize_activations": "covariance_whitening"},
    "normalised": {"normalize_activations": "layer_norm"},
    "gumbel": {"selection": "gumbel"},
    "binary_entropy": {"entropy_coefficient": 1e-3},
}


def trainer(kind: str, rows: Tensor, **settings: Any) -> Any:
    fields = {key: value for key, value in SIZES.items() if key != "lr"} | CODERS[kind]
    classes = (BinaryTrainingSAEConfig, BinaryEntropyTrainingSAEConfig)
    refit = settings.pop("refit_tokens", 0)
    config = classes[kind == "binary_entropy"](**fields, refit_tokens=refit)
    return trainer_for(config, rows, settings.pop("steps", STEPS), **settings)


@pytest.mark.parametrize("kind", CODERS)
def test_the_runs_decoder_is_the_commands_on_the_batches_after_training(
    kind: str, clustered_activations: Tensor, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    plain = trainer(kind, clustered_activations)
    expected = plain.fit()
    assert "refitted" not in caplog.text
    batches = list(islice(plain.data_provider, READ // BATCH))
    tokens = torch.cat(batches)
    before = measure(expected, tokens, tokens).fvu
    trained = expected.W_dec.clone()
    refit_decoder(expected, [(batch, batch) for batch in batches])

    found = trainer(kind, clustered_activations, refit_tokens=REFIT).fit()
    assert not torch.equal(found.W_dec, trained)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    if kind != "normalised":  # that coder's log is of normalised tokens
        after = measure(found, tokens, tokens).fvu
        assert f"on {READ} tokens, FVU {before:.4f} -> {after:.4f}" in caplog.text
        assert after < before


def test_checkpoints_keep_the_trained_decoder_and_go_on_as_an_unbroken_run(
    clustered_activations: Tensor, tmp_path: Path
):
    settings: dict[str, Any] = {"refit_tokens": REFIT, "lr_end": 3e-3}
    unbroken = trainer("scaled", clustered_activations, **settings)
    expected = unbroken.fit()
    first = trainer(
        "scaled",
        clustered_activations,
        n_checkpoints=1,
        save_final_checkpoint=True,
        checkpoint_path=str(tmp_path),
        **settings,
    )
    first.fit()
    middle, final = sorted(tmp_path.iterdir(), key=lambda path: path.name.startswith("final"))
    assert not torch.equal(TrainingSAE.load_from_disk(final).W_dec, expected.W_dec)

    resumed = trainer("scaled", clustered_activations, **settings)
    resumed.load_trainer_state(middle)
    resumed.sae.load_weights_from_checkpoint(middle)
    for _ in range(resumed.n_training_steps + 5):  # five batches estimated the scale
        next(resumed.data_provider)
    assert 0 < resumed.n_training_steps < STEPS
    found = resumed.fit()
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_coders_that_share_batches_are_refitted_in_one_pass(clustered_activations: Tensor):
    pairs = torch.cat([clustered_activations, 3 * clustered_activations.flip(1) + 1], dim=1)

    def trained(tokens: dict[str, int]) -> Any:
        torch.manual_seed(0)
        multi = pair_trainer(pairs, dict.fromkeys(tokens, False), "expected_average_only_in")
        for name, refit in tokens.items():
            coder = multi.saes[name]
            if isinstance(coder.cfg, BinaryTranscoderTrainingSAEConfig):
                coder.cfg.refit_tokens = refit
        multi.fit()
        return multi

    plain = trained({"binary": 0, "continuous": 0})
    width = plain.saes["binary"].cfg.d_in
    rows = [batch[plain.hook_names["binary"]] for batch in islice(plain.data_provider, 2)]
    expected = plain.saes["binary"]
    fit = refit_decoder(
        expected, [split_pairs(each, width, each.shape[1] - width) for each in rows]
    )

    refitted = trained({"binary": len(rows[0]) + 1, "continuous": 0})
    assert fit.fvu_after < fit.fvu_before < 1
    for name, coder in refitted.saes.items():
        torch.testing.assert_close(coder.state_dict(), plain.saes[name].state_dict())


def test_tokens_that_are_not_finite_are_left_out(clustered_activations: Tensor):
    def batches(spoilt: bool) -> Iterator[Tensor]:
        yield from clustered_activations[: STEPS * BATCH].split(BATCH)
        last = clustered_activations[-BATCH:].clone()
        if spoilt:
            last = torch.cat([last, torch.full((3, 16), torch.nan), torch.full((1, 16), torch.inf)])
        yield last

    coders = []
    for spoilt in (False, True):
        run = trainer("b_dec not subtracted", clustered_activations, refit_tokens=BATCH)
        run.data_provider = batches(spoilt)
        coders.append(run.fit().state_dict())
    torch.testing.assert_close(*coders)


def test_a_refit_that_fails_keeps_the_trained_coder(
    clustered_activations: Tensor, caplog: pytest.LogCaptureFixture
):
    trained = trainer("binary", clustered_activations).fit()
    run = trainer("binary", clustered_activations, refit_tokens=REFIT)
    run.data_provider = iter(clustered_activations[: STEPS * BATCH].split(BATCH))
    torch.testing.assert_close(run.fit().state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert "the refit failed, so the trained decoder stays" in caplog.text
    assert "no activations" in caplog.text


@pytest.mark.parametrize("tokens", [-1, 0.5, float("nan"), float("inf")])
def test_a_wrong_number_of_tokens_is_named(tokens: Any):
    with pytest.raises(ValueError, match=rf"refit_tokens={tokens}.*at least 0"):
        BinaryTrainingSAEConfig(d_in=4, d_sae=8, k=2, refit_tokens=tokens)
