import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE, Transcoder
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoder,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saelens.pair_trainer import PairTrainer
from tests.saelens.helpers import BATCH

D_IN, D_OUT, D_SAE, K = 16, 10, 64, 8
WIDTHS: dict[str, Any] = {"d_in": D_IN, "d_out": D_OUT, "d_sae": D_SAE, "k": K}
BINARY = BinaryTranscoderTrainingSAEConfig
CONFIGS: dict[str, Any] = {
    **{
        f"{selection}{'-skip' if skip else ''}": BINARY(
            **WIDTHS, selection=selection, skip_connection=skip
        )
        for selection in ("topk", "threshold", "groupmax", "gumbel")
        for skip in (False, True)
    },
    "entropy": BINARY(**WIDTHS, selection="threshold", entropy_coefficient=1e-4),
    "entropy-covariance-skip": BINARY(
        **WIDTHS, entropy_coefficient=1e-4, covariance_coefficient=1e-5, skip_connection=True
    ),
    "continuous": TopKTranscoderTrainingSAEConfig(**WIDTHS),
    "continuous-skip": TopKTranscoderTrainingSAEConfig(**WIDTHS, skip_connection=True),
    "continuous-rescaled": TopKTranscoderTrainingSAEConfig(
        **WIDTHS, rescale_acts_by_decoder_norm=True, decoder_init_norm=0.1, skip_connection=True
    ),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
# Selection gumbel samples in training; tests/coding compares its gradient with the formula.
each_binary_config = pytest.mark.parametrize(
    "name", [name for name in CONFIGS if not name.startswith(("gumbel", "continuous"))]
)


@pytest.fixture(scope="session")
def pairs(clustered_activations: Tensor) -> Tensor:
    """Pairs [4000, D_IN + D_OUT], whose targets are a function of the inputs at a larger scale."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.relu(clustered_activations @ torch.randn(D_IN, 40, generator=generator) - 1)
    targets = 20 * hidden @ torch.randn(40, D_OUT, generator=generator) + 30
    return torch.cat([clustered_activations, targets], dim=1)


def fresh(config: Any, **changes: Any) -> TrainingSAE[Any]:
    made = replace(config, metadata=SAEMetadata(), **changes)
    return TrainingSAE.from_dict(made.to_dict())


def step_input(pairs: Tensor, step: int = 0, dead: Tensor | None = None) -> TrainStepInput:
    return TrainStepInput(pairs, {}, dead, step, False)


def trainer_for(
    saes: dict[str, TrainingSAE[Any]], pairs: Tensor, steps: int, **settings: Any
) -> PairTrainer:
    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in itertools.cycle(pairs.split(BATCH)):
            yield {"pairs": batch}

    config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=settings.pop("lr", 1e-2),
        lr_end=1e-3,
        n_batches_for_norm_estimate=5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return PairTrainer(
        config,
        settings.pop("lrs", {}),
        saes=saes,
        hook_names=dict.fromkeys(saes, "pairs"),
        data_provider=batches(),
    )


def fvu(transcoder: Any, pairs: Tensor) -> float:
    x, target = pairs[:, :D_IN], pairs[:, D_IN:]
    with torch.no_grad():
        error = (transcoder(x) - target).square().sum()
    return (error / (target - target.mean(0)).square().sum()).item()


@pytest.mark.parametrize(
    "normalize",
    [
        "none",
        "layer_norm",
        "constant_norm_rescale",
        "expected_average_only_in",
        "covariance_whitening",
    ],
)
@each_config
def test_a_trained_transcoder_loads_bit_for_bit_and_takes_raw_activations(
    config: Any, normalize: str, pairs: Tensor, tmp_path: Path
):
    sae = fresh(config, normalize_activations=normalize)
    trained = trainer_for({"it": sae}, pairs, steps=60).fit()["it"]
    trained.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)

    x = pairs[:, :D_IN]
    assert type(loaded) is (BinaryTranscoder if isinstance(config, BINARY) else TopKTranscoder)
    assert isinstance(loaded, Transcoder)
    at_run_time = normalize in ("layer_norm", "constant_norm_rescale")
    assert loaded.cfg.normalize_activations == (normalize if at_run_time else "none")
    assert loaded.cfg.metadata.training_architecture == config.architecture()
    assert loaded(x).shape == (len(x), D_OUT)
    # Adam's steps have a fixed size and raw targets are large. TopK starts at zero and lags behind.
    scaled = normalize in ("expected_average_only_in", "covariance_whitening")
    assert fvu(loaded, pairs) < (0.75 if scaled else 0.95 if isinstance(config, BINARY) else 1.0)
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & vars(loaded).keys()
    if isinstance(config, BINARY):
        assert set(loaded.encode(x).unique().tolist()) == {0.0, 1.0}
        assert torch.equal(loaded.encode(x), trained.encode(x))
        assert torch.equal(loaded(x), trained(x))
    else:  # the saved coder has its decoder norms folded in
        torch.testing.assert_close(loaded(x), trained(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
@each_config
def test_scaling_is_folded_without_changing_the_output(config: Any, normalize: str, pairs: Tensor):
    pairs = pairs.double()
    sae = fresh(config, normalize_activations=normalize, dtype="float64")
    trainer = trainer_for({"it": sae}, pairs, steps=20)
    scaled: dict[str, Tensor] = {}

    # fit() deletes the scale after folding it, so compute outputs before the fold.
    def remember() -> None:
        scaler: Any = trainer.trainers["it"].activation_scaler
        with torch.no_grad():
            scaled["output"] = scaler.target.unscale(sae(scaler.input.scale(pairs[:, :D_IN])))

    fold = (
        "fold_activation_whitening"
        if normalize == "covariance_whitening"
        else "fold_activation_norm_scaling_factor"
    )
    original = getattr(sae, fold)
    setattr(sae, fold, lambda *a, **k: (remember(), original(*a, **k)))
    folded = trainer.fit()["it"]
    with torch.no_grad():
        torch.testing.assert_close(folded(pairs[:, :D_IN]), scaled["output"])


@each_config
def test_codes_and_outputs_survive_saving_in_every_dtype(config: Any, tmp_path: Path):
    for dtype in ("float32", "bfloat16", "float64"):
        sae = fresh(config, dtype=dtype)
        sae.training_forward_pass(step_input(torch.randn(300, D_IN + D_OUT)))
        for parameter in (sae.W_dec, sae.b_dec, sae.W_skip):
            if parameter is not None:
                torch.nn.init.normal_(parameter)
        sae.save_inference_model(tmp_path / dtype)
        loaded = SAE.load_from_disk(tmp_path / dtype)
        for shape in ((20, D_IN), (4, 5, D_IN)):
            x = torch.randn(shape)
            output = loaded(x)
            assert output.shape == (*shape[:-1], D_OUT)
            assert output.dtype == getattr(torch, dtype)
            if isinstance(config, BINARY):
                assert torch.equal(loaded.encode(x), sae.encode(x))
                assert torch.equal(output, sae(x))


def test_a_resumed_run_ends_where_an_unbroken_one_does(pairs: Tensor, tmp_path: Path):
    # Makes fresh coders of all kinds, which train at once, at two learning rates.
    def trainer(batches: Tensor) -> PairTrainer:
        torch.manual_seed(0)
        saes = {
            name: fresh(config, normalize_activations="expected_average_only_in")
            for name, config in CONFIGS.items()
            if not name.startswith("gumbel")  # gumbel samples, and SAELens saves no random state
        }
        made = trainer_for(saes, batches, steps=20, lrs={"topk": 3e-3})
        made.cfg.checkpoint_path = str(tmp_path)
        return made

    def go_on(trainer: PairTrainer, batches: Tensor) -> None:
        for batch in batches.split(BATCH):
            for single in trainer.trainers.values():
                single.step(batch)
                single.n_training_steps += 1

    unbroken = trainer(pairs)
    unbroken._estimate_scaling_factors()
    go_on(unbroken, pairs[:2000])
    unbroken.save_checkpoint("half")
    go_on(unbroken, pairs[2000:])

    resumed = trainer(3 * pairs)  # 3 * pairs would give another scale
    resumed.load_checkpoint(tmp_path / "half")
    assert resumed.n_training_steps == 10
    resumed._estimate_scaling_factors()  # as fit() does; the checkpoint's scales stay
    go_on(resumed, pairs[2000:])
    for name, sae in resumed.saes.items():
        expected = unbroken.saes[name].state_dict()
        torch.testing.assert_close(sae.state_dict(), expected, rtol=0, atol=0)


def test_each_transcoder_has_its_learning_rate(pairs: Tensor):
    saes = {name: fresh(CONFIGS["topk"]) for name in ("slow", "fast")}
    trainer = trainer_for(saes, pairs, steps=5, lr=1e-4, lrs={"fast": 2e-3})
    rates = {
        name: single.optimizer.param_groups[0]["lr"] for name, single in trainer.trainers.items()
    }
    assert rates == {"slow": 1e-4, "fast": 2e-3}


@pytest.mark.parametrize("dead_latents", [0, 20])
@each_binary_config
def test_a_step_is_the_formula_in_float64(name: str, dead_latents: int):
    """Loss and every gradient of a step equal the plainly written formulas."""
    config = CONFIGS[name]
    batch = torch.randn(200, D_IN + D_OUT, dtype=torch.float64)
    x, target = batch[:, :D_IN], batch[:, D_IN:]
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[:dead_latents] = True
    sae: Any = fresh(config, dtype="float64", aux_loss_coefficient=0.3)
    sae.training_forward_pass(step_input(batch))  # fits the start
    for parameter in sae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    sae.log_threshold.data = sae.log_threshold.data.float()
    sae.zero_grad()
    output = sae.training_forward_pass(step_input(batch, dead=dead))
    output.loss.backward()

    plain = {
        name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()
    }
    log_threshold = plain["log_threshold"].double()
    pre = x @ plain["W_enc"] + plain["b_enc"]
    codes = reference.codes(pre, log_threshold, sae.rule)
    predicted = codes @ plain["W_dec"] + plain["b_dec"]
    if "W_skip" in plain:
        predicted = predicted + x @ plain["W_skip"].T
    residual = target - predicted
    loss = residual.square().sum(-1).mean()
    variance = (target - target.mean(0)).square().sum(-1).mean()
    rates = codes.mean(0)
    if config.entropy_coefficient:
        bits = -torch.special.xlogy(rates, rates) - torch.special.xlogy(1 - rates, 1 - rates)
        loss = loss + config.entropy_coefficient * variance * bits.sum() / torch.tensor(2.0).log()
    if config.covariance_coefficient:
        covariance = codes.T.cov()
        # Rounding would give a covariance of zero a sign, and thus a wrong gradient.
        covariance = covariance.where(covariance.abs() > 1e-12, 0.0)
        off_diagonal = covariance.abs().sum() - covariance.diagonal().abs().sum()
        loss = loss + config.covariance_coefficient * variance * off_diagonal
    if dead_latents:
        margin = (pre - log_threshold.exp())[:, :dead_latents]
        taken = min(D_OUT // 2, dead_latents)
        places = margin.topk(taken).indices
        allowed = torch.zeros_like(margin).scatter(1, places, 1.0)
        linear = allowed * reference.slope(margin, sae.rule).detach() * margin
        revived = allowed + (linear - linear.detach())  # taken as fired, even at a negative margin
        error = revived @ plain["W_dec"][:dead_latents] - residual.detach()
        loss = loss + 0.3 * error.square().sum(-1).mean()
        biases = plain["b_enc"][:dead_latents].sum()
        loss = loss - config.pre_act_loss_coefficient * variance * biases
    loss.backward()

    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.equal(output.sae_in, target)
    for name, parameter in sae.named_parameters():
        expected = plain[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-9, msg=name)


def test_the_first_batch_sets_the_start(pairs: Tensor):
    sae = fresh(CONFIGS["threshold"], initial_firing_rate=0.03)
    output = sae.training_forward_pass(step_input(pairs))
    assert output.feature_acts.to_dense().mean().item() == pytest.approx(0.03, abs=1e-3)
    assert fvu(sae, pairs) < 0.98  # the mean target would give an FVU of 1
    torch.testing.assert_close(output.sae_out.mean(0), pairs[:, D_IN:].mean(0))
    continuous = fresh(CONFIGS["continuous"])
    _, pre = continuous.encode_with_hidden_pre(pairs[:, :D_IN])
    assert pre.mean(0).abs().max() > 0.01
    pre = continuous.training_forward_pass(step_input(pairs)).hidden_pre
    torch.testing.assert_close(pre.mean(0), torch.zeros(D_SAE), atol=1e-4, rtol=0)
    torch.testing.assert_close(continuous.b_dec.detach(), pairs[:, D_IN:].mean(0))


@pytest.mark.parametrize("name", ["threshold", "continuous"])
def test_loaded_weights_are_not_set_again(name: str, pairs: Tensor):
    sae = fresh(CONFIGS[name])
    loaded = copy.deepcopy(sae.state_dict())
    sae.load_state_dict(sae.state_dict())
    sae.training_forward_pass(step_input(pairs))
    torch.testing.assert_close(sae.state_dict(), loaded, rtol=0, atol=0)


def test_decoder_init_norm_is_kept():
    sae = fresh(CONFIGS["topk"], decoder_init_norm=0.3)
    sae.training_forward_pass(step_input(torch.randn(100, D_IN + D_OUT)))
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=-1), torch.full((D_SAE,), 0.3))
    assert sae.W_enc.shape == (D_IN, D_SAE)
