"""SAELens' estimates before training use only tokens that are finite."""

import itertools
from typing import Any

import pytest
import torch
from sae_lens import LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saelens.pair_trainer import PairTrainer
from tests.saelens.helpers import trainer_for

D_IN, D_SAE, K = 16, 64, 8
BATCHES = 5  # number of batches that an estimate reads
SCALE, WHITENING = "expected_average_only_in", "covariance_whitening"
each_mode = pytest.mark.parametrize("mode", [SCALE, WHITENING])
each_bad_value = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
FIELDS: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": K}
AUTOENCODERS = {
    "topk": BinaryTrainingSAEConfig(**FIELDS),
    "entropy": BinaryEntropyTrainingSAEConfig(**FIELDS),
}
TRANSCODERS = {
    "binary": BinaryTranscoderTrainingSAEConfig(**FIELDS),
    "continuous": TopKTranscoderTrainingSAEConfig(**FIELDS),
}


def spoilt(activations: Tensor, bad: float) -> tuple[Tensor, list[Tensor]]:
    """Returns activations with some bad tokens, and the finite tokens of each batch."""
    rows = activations.clone()
    places = torch.tensor([5, 17, 203, 999])
    rows[places, torch.tensor([2, 0, 11, -1])] = bad
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[places] = False
    batches = zip(rows.split(200), kept.split(200), strict=True)
    return rows, [batch[finite] for batch, finite in itertools.islice(batches, BATCHES)]


def check_statistics(scaler: Any, mode: str, batches: list[Tensor]) -> None:
    """Compare a scaler with SAELens' scale of the finite tokens, or with the whitening formula.

    SAELens 6.54.0 takes the mean norm over batches, later versions take it over tokens.
    """
    width = batches[0].shape[1]
    tokens = torch.cat(batches).double()
    if mode == SCALE:
        stock = ActivationScaler()
        stock.estimate_scaling_factor(width, iter(batches), len(batches))
        assert scaler.scaling_factor == pytest.approx(stock.scaling_factor, rel=1e-6)
        factor = width**0.5 / tokens.norm(dim=1).mean()
        assert scaler.scaling_factor == pytest.approx(factor.item(), rel=1e-4)
    else:
        torch.testing.assert_close(scaler.whitening.mean, tokens.mean(0))
        inverse = scaler.whitening.inverse_matrix
        covariance = tokens.T.cov() + 1e-3 * torch.eye(tokens.shape[1])
        torch.testing.assert_close(inverse.T @ inverse, covariance, rtol=1e-6, atol=1e-8)


@each_bad_value
@each_mode
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_tokens_that_are_not_finite_are_left_out_of_estimates_too(
    name: str, mode: str, bad: float, clustered_activations: Tensor
):
    rows, finite = spoilt(clustered_activations, bad)
    fields = AUTOENCODERS[name].to_dict() | {"normalize_activations": mode, "skip_non_finite": True}
    trainer = trainer_for(type(AUTOENCODERS[name]).from_dict(fields), rows, steps=4)
    seen: list[Any] = []
    for fold in ("fold_activation_norm_scaling_factor", "fold_activation_whitening"):
        stock = getattr(trainer.sae, fold)

        def note(*args: Any, stock: Any = stock, **kwargs: Any) -> None:
            check_statistics(trainer.activation_scaler, mode, finite)
            seen.append(stock(*args, **kwargs))

        setattr(trainer.sae, fold, note)
    trained = trainer.fit()
    assert len(seen) == 1
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


@each_bad_value
@each_mode
def test_an_estimate_stops_at_them_and_is_named(
    mode: Any, bad: float, clustered_activations: Tensor
):
    rows, _ = spoilt(clustered_activations, bad)
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=mode)
    with pytest.raises(ValueError, match=rf"estimate of .*{mode}.*batch 1.*skip_non_finite"):
        trainer_for(config, rows).fit()


@each_mode
def test_an_estimate_of_nothing_is_named(mode: Any, clustered_activations: Tensor):
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=mode, skip_non_finite=True)
    rows = torch.full_like(clustered_activations, float("nan"))
    with pytest.raises(ValueError, match=rf"estimate of .*{mode}.* had 0 tokens"):
        trainer_for(config, rows).fit()


def test_activations_that_are_all_zero_have_no_scale(clustered_activations: Tensor):
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=SCALE)
    with pytest.raises(ValueError, match=r"estimate of the activation scale .* all 0"):
        trainer_for(config, torch.zeros_like(clustered_activations)).fit()


def test_a_norm_that_float16_cannot_hold_is_estimated():
    """Each value fits into float16, but the norm of a token does not."""
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=SCALE)
    rows = (40_000 * torch.randn(1000, D_IN).sign()).half()
    trainer = trainer_for(config, rows)
    scaler = trainer.activation_scaler
    scaler.estimate_scaling_factor(D_IN, trainer.data_provider, BATCHES)
    assert scaler.scaling_factor == pytest.approx(1 / 40_000)


def pair_trainer(pairs: Tensor, skips: dict[str, bool], mode: str) -> PairTrainer:
    cfg = SAETrainerConfig(
        total_training_samples=800,
        train_batch_size_samples=200,
        lr=1e-3,
        lr_end=1e-4,
        n_batches_for_norm_estimate=BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
    )
    saes = {
        name: TrainingSAE.from_dict(
            TRANSCODERS[name].to_dict() | {"normalize_activations": mode, "skip_non_finite": skip}
        )
        for name, skip in skips.items()
    }
    return PairTrainer(
        cfg,
        {},
        saes=saes,
        hook_names=dict.fromkeys(saes, "pairs"),
        data_provider=({"pairs": batch} for batch in itertools.cycle(pairs.split(200))),
    )


@each_bad_value
@each_mode
@pytest.mark.parametrize("side", ["inputs", "targets"])
def test_pairs_with_a_side_that_is_not_finite_are_left_out(
    side: str, mode: str, bad: float, clustered_activations: Tensor
):
    rows, _ = spoilt(clustered_activations, bad)
    pairs = [rows, clustered_activations.flip(1)]
    pairs = torch.cat(pairs if side == "inputs" else pairs[::-1], dim=1)
    batches = [batch[batch.isfinite().all(1)] for batch in pairs.split(200)[:BATCHES]]
    trainer = pair_trainer(pairs, {"binary": True, "continuous": True}, mode)
    trainer._estimate_scaling_factors()
    for single in trainer.trainers.values():
        scaler: Any = single.activation_scaler
        check_statistics(scaler.input, mode, [batch[:, :D_IN] for batch in batches])
        check_statistics(scaler.target, mode, [batch[:, D_IN:] for batch in batches])
    for trained in trainer.fit().values():
        assert all(parameter.isfinite().all() for parameter in trained.parameters())
    # If one transcoder does not skip bad tokens, the run of both stops.
    trainer = pair_trainer(pairs, {"binary": True, "continuous": False}, mode)
    with pytest.raises(ValueError, match=rf"estimate of .*{mode}"):
        trainer.fit()
