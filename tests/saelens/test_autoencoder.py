import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding import reference, scatter_codes, unpack
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from tests.cases import SELECTIONS, each_selection
from tests.saelens.helpers import fvu, trainer_for

D_IN, D_SAE, K = 16, 128, 8
NORMALIZE = (
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
)
CONFIGS = [
    *(
        BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, selection=selection)
        for selection in SELECTIONS
    ),
    BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, surrogate_latents="all"),
    # The smaller k uses the index form, and the larger k uses the dense form.
    BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, surrogate_latents="near"),
    BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=2 * K, surrogate_latents="near"),
    BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, encoder_trains_b_dec=True),
    BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
    BinaryEntropyTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, selection="topk", k=K, covariance_coefficient=1e-4
    ),
]
each_config = pytest.mark.parametrize(
    "config",
    CONFIGS,
    ids=lambda config: (
        f"{config.architecture()}-{config.selection}-k{config.k}-learn-{config.surrogate_latents}"
        f"-b_dec-{'both' if config.encoder_trains_b_dec else 'decoder'}"
    ),
)


def config_like(config: BinaryTrainingSAEConfig, **changes: Any) -> BinaryTrainingSAEConfig:
    fields = {name: value for name, value in vars(config).items() if name != "metadata"}
    return type(config)(**{**fields, **changes})


@each_config
def test_a_trained_coder_reconstructs_and_loads_bit_for_bit(
    config: BinaryTrainingSAEConfig, clustered_activations: Tensor, tmp_path: Path
):
    trained = trainer_for(config, clustered_activations, steps=60).fit()
    trained.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)

    assert type(loaded) is BinarySAE
    assert loaded.cfg.architecture() == "binary"
    assert loaded.cfg.metadata.training_architecture == config.architecture()
    assert torch.equal(loaded.encode(clustered_activations), trained.encode(clustered_activations))
    assert torch.equal(loaded(clustered_activations), trained(clustered_activations))
    assert fvu(loaded, clustered_activations) < 0.8

    trained.save_model(tmp_path / "checkpoint")
    from_checkpoint = SAE.load_from_disk(tmp_path / "checkpoint")
    assert type(from_checkpoint) is BinarySAE
    assert torch.equal(from_checkpoint(clustered_activations), trained(clustered_activations))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(40, D_IN), (4, 10, D_IN)])
@each_config
def test_codes_are_exactly_zero_or_one_and_survive_saving(
    config: BinaryTrainingSAEConfig, shape: tuple[int, ...], dtype: str, tmp_path: Path
):
    x = torch.randn(shape)
    trainer = trainer_for(config_like(config, dtype=dtype), torch.randn(1000, D_IN), steps=3)
    training_codes = trainer.step(torch.randn(200, D_IN)).feature_acts.to_dense()
    trained = trainer.fit()
    trained.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    codes = loaded.encode(x)

    assert codes.dtype == getattr(torch, dtype)
    assert codes.shape == (*shape[:-1], D_SAE)
    for each in (training_codes, codes):
        assert set(each.flatten().tolist()) <= {0.0, 1.0}
        if config.selection in ("topk", "groupmax"):
            assert each.sum(-1).max() <= config.k
        if config.selection == "gumbel":
            assert (each.sum(-1) == config.k).all()
    assert torch.equal(codes, trained.encode(x))
    assert torch.equal(loaded(x), trained(x))
    assert torch.equal(codes, scatter_codes(*loaded.encode_indices(x), D_SAE))
    assert torch.equal(codes, unpack(loaded.encode_packed(x), D_SAE, codes.dtype))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_every_normalisation_trains_and_folds_without_changing_codes(
    normalize: str, apply_b_dec_to_input: bool, clustered_activations: Tensor, tmp_path: Path
):
    config = BinaryTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        normalize_activations=normalize,  # type: ignore[arg-type]
        apply_b_dec_to_input=apply_b_dec_to_input,
    )
    trainer = trainer_for(config, clustered_activations, steps=40)
    sae, scaler = trainer.sae, trainer.activation_scaler
    before: dict[str, Tensor] = {}

    # fit() deletes the scale after folding it, so read the codes just before the fold.
    @torch.no_grad()
    def remember() -> None:
        scaled = scaler(clustered_activations)
        margin = sae.encode_with_hidden_pre(scaled)[1] - sae.log_threshold.exp()
        largest = margin.topk(K + 1).values
        clear = torch.minimum(margin.abs().min(-1).values, largest[:, -2] - largest[:, -1]) > 1e-4
        before.update(codes=sae.encode(scaled), clear=clear)

    folds = {
        "expected_average_only_in": "fold_activation_norm_scaling_factor",
        "covariance_whitening": "fold_activation_whitening",
    }
    if normalize in folds:
        fold = getattr(sae, folds[normalize])
        setattr(sae, folds[normalize], lambda *a, **k: (remember(), fold(*a, **k)))
    trained = trainer.fit()
    if normalize in folds:
        after = trained.encode(clustered_activations)
        assert before["clear"].float().mean() > 0.5
        assert torch.equal(after[before["clear"]], before["codes"][before["clear"]])

    trained.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert torch.equal(loaded(clustered_activations), trained(clustered_activations))
    assert fvu(loaded, clustered_activations) < 0.9


@each_config
def test_training_gradients_do_not_depend_on_the_path(config: BinaryTrainingSAEConfig):
    """A step in index form and a step in dense form, which a hook forces, give equal gradients."""
    batch = torch.randn(300, D_IN, dtype=torch.float64)
    gradients: list[dict[str, Tensor | None]] = []
    losses: list[float] = []
    for observed in (False, True):
        torch.manual_seed(0)
        sae = TrainingSAE.from_dict(config_like(config, dtype="float64").to_dict())
        if observed:
            sae.hook_sae_acts_pre.add_hook(lambda tensor, hook: None)
        sae.load_state_dict(sae.state_dict())  # after a load, the first batch sets no parameters
        torch.manual_seed(0)
        output = sae.training_forward_pass(TrainStepInput(batch, {}, None, 5, False))
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append({name: p.grad for name, p in sae.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-12)
    assert all(gradient is not None for gradient in gradients[0].values())


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("encoder_trains", [False, True])
def test_b_dec_learns_through_the_encoder_where_asked_to(encoder_trains: bool, observed: bool):
    config = BinaryTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, dtype="float64", encoder_trains_b_dec=encoder_trains
    )
    sae = TrainingSAE.from_dict(config.to_dict())
    if observed:
        sae.hook_sae_acts_pre.add_hook(lambda tensor, hook: None)
    x = torch.randn(50, D_IN, dtype=torch.float64)
    codes, pre = sae.encode_with_hidden_pre(x)
    loss = (x - sae.decode(codes)).square().sum() + pre.square().sum()

    origin = sae.b_dec if encoder_trains else sae.b_dec.detach()
    expected_pre = (x - origin) @ sae.W_enc + sae.b_enc
    expected_codes = reference.codes(expected_pre, sae.log_threshold, sae.rule)
    reconstruction = expected_codes @ sae.W_dec + sae.b_dec
    expected = (x - reconstruction).square().sum() + expected_pre.square().sum()

    torch.testing.assert_close(loss, expected)
    parameters = list(sae.parameters())
    ours = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, parameters))


@pytest.mark.parametrize("observed", [False, True])
def test_a_hook_can_change_codes(observed: bool):
    sae = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4).to_dict())
    if observed:
        sae.hook_sae_acts_post.add_hook(lambda tensor, hook: torch.zeros_like(tensor))
    output = sae.training_forward_pass(TrainStepInput(torch.randn(50, D_IN), {}, None, 0, False))
    silent = torch.allclose(output.sae_out, sae.b_dec.expand_as(output.sae_out))
    assert silent == observed


def test_codes_changed_in_place_are_decoded_as_they_are():
    sae = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4).to_dict())
    x = torch.randn(50, D_IN)
    codes, _ = sae.encode_with_hidden_pre(x)
    with torch.no_grad():
        codes.zero_()
    torch.testing.assert_close(sae.decode(codes), sae.b_dec.expand(50, D_IN))


def test_pre_activations_carry_gradients_to_the_encoder():
    sae = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4).to_dict())
    _, hidden_pre = sae.encode_with_hidden_pre(torch.randn(50, D_IN))
    hidden_pre.square().sum().backward()
    assert sae.W_enc.grad is not None
    assert sae.W_enc.grad.abs().sum() > 0


def test_a_step_hands_on_the_codes_and_pre_activations_that_it_used(clustered_activations: Tensor):
    config = BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)
    trainer = trainer_for(config, clustered_activations, steps=5)
    batch = clustered_activations[:200]
    trainer.step(batch)
    before = copy.deepcopy(trainer.sae)
    output = trainer.step(batch)
    codes, pre = before.codes_and_pre_activations(batch, noise=False)
    assert torch.equal(output.feature_acts.to_dense(), codes)
    held = output.hidden_pre.to_dense()
    torch.testing.assert_close(held[held != 0], pre[held != 0])
    assert ((held != 0).sum(-1) == K).all()


def test_a_subclass_that_reads_codes_gets_them_dense_with_gradient(clustered_activations: Tensor):
    read: list[Tensor] = []

    class Reading(BinaryTrainingSAE):
        @override
        def calculate_aux_loss(self, step_input: Any, feature_acts: Tensor, **rest: Any) -> Any:
            read.append(feature_acts)
            return {"own": feature_acts.sum()}

    sae = Reading(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    batch = clustered_activations[:50]
    output = sae.training_forward_pass(TrainStepInput(batch, {}, None, 0, False))
    assert read[0].requires_grad
    assert read[0].shape == (50, D_SAE)
    assert output.losses["own"] == read[0].sum()


@each_config
def test_a_coder_trains_under_autocast(
    config: BinaryTrainingSAEConfig, clustered_activations: Tensor
):
    trainer = trainer_for(config, clustered_activations, steps=5, autocast=True)
    codes = trainer.step(clustered_activations[:200]).feature_acts.to_dense()
    assert set(codes.flatten().tolist()) <= {0.0, 1.0}
    trained = trainer.fit()
    assert trained.log_threshold.dtype == torch.float32
    assert all(torch.isfinite(parameter).all() for parameter in trained.parameters())


def test_gumbel_samples_in_training_steps_alone():
    config = BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, selection="gumbel")
    sae = TrainingSAE.from_dict(config.to_dict())
    x = torch.randn(100, D_IN)
    assert torch.equal(sae.encode(x), sae.encode(x))
    assert torch.equal(sae(x), sae(x))
    assert not torch.equal(sae.encode_with_hidden_pre(x)[0], sae.encode(x))
    sae.eval()
    assert torch.equal(sae.encode_with_hidden_pre(x)[0], sae.encode(x))


def test_loaded_weights_are_not_fitted_to_the_first_batch(
    clustered_activations: Tensor, tmp_path: Path
):
    config = BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)
    trained = trainer_for(config, clustered_activations).fit()
    trained.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    before = copy.deepcopy(again.state_dict())
    again.training_forward_pass(TrainStepInput(clustered_activations, {}, None, 0, False))
    torch.testing.assert_close(again.state_dict(), before, rtol=0, atol=0)


@each_config
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    config: BinaryTrainingSAEConfig, clustered_activations: Tensor, tmp_path: Path
):
    batches = list(clustered_activations.split(200))
    unbroken = trainer_for(config, clustered_activations)
    for number, batch in enumerate(batches):
        if number == 9:
            unbroken.save_checkpoint("half", base_path=tmp_path)
            random_state = torch.get_rng_state()
        unbroken.step(batch)
        unbroken.n_training_steps += 1

    resumed = trainer_for(config, clustered_activations)
    resumed.load_trainer_state(tmp_path / "half")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "half")
    torch.set_rng_state(random_state)  # gumbel samples, but SAELens saves no random state
    for batch in batches[9:]:
        resumed.step(batch)
        resumed.n_training_steps += 1
    torch.testing.assert_close(resumed.sae.state_dict(), unbroken.sae.state_dict(), rtol=0, atol=0)


def test_a_fresh_coder_starts_at_the_firing_rate_asked_for(clustered_activations: Tensor):
    config = BinaryTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, selection="threshold", initial_firing_rate=0.03
    )
    sae = TrainingSAE.from_dict(config.to_dict())
    output = sae.training_forward_pass(TrainStepInput(clustered_activations, {}, None, 0, False))
    assert output.feature_acts.to_dense().mean().item() == pytest.approx(0.03, abs=1e-3)
    torch.testing.assert_close(sae.b_dec.detach(), clustered_activations.mean(0))


def test_decoder_init_norm_is_kept():
    config = BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, decoder_init_norm=0.3)
    sae = TrainingSAE.from_dict(config.to_dict())
    sae.training_forward_pass(TrainStepInput(torch.randn(100, D_IN), {}, None, 0, False))
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=-1), torch.full((D_SAE,), 0.3))


def test_the_threshold_learns_in_float32_whatever_the_dtype():
    config = BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, dtype="bfloat16")
    sae = TrainingSAE.from_dict(config.to_dict())
    assert isinstance(sae, BinaryTrainingSAE)
    sae.log_threshold.data.add_(1e-4)
    value = sae.log_threshold.detach().clone()
    assert sae.to(torch.bfloat16).log_threshold.dtype == torch.float32
    assert sae.to("cpu").log_threshold.dtype == torch.float32
    assert torch.equal(sae.log_threshold, value)


def test_folding_decoder_norms_is_refused(tmp_path: Path):
    config = BinarySAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)
    sae = BinarySAE(config)
    with pytest.raises(NotImplementedError, match="decoder row"):
        sae.fold_W_dec_norm()
    sae.save_model(tmp_path)
    with pytest.raises(NotImplementedError, match="decoder row"):
        SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)
    training = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K).to_dict())
    with pytest.raises(NotImplementedError, match="decoder row"):
        training.fold_W_dec_norm()


@each_selection
@pytest.mark.parametrize("width", [1, D_IN - 1, D_IN + 1])
def test_a_wrong_width_is_named(selection: Any, width: int):
    sae = BinarySAE(BinarySAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, selection=selection))
    with pytest.raises(ValueError, match=rf"d_in={D_IN}"):
        sae.encode(torch.randn(5, width))
    with pytest.raises(ValueError, match=rf"d_in={D_IN}"):
        sae(torch.randn(2, 5, width))


def test_coders_can_be_copied():
    sae = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K).to_dict())
    x = torch.randn(20, D_IN)
    sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
    assert torch.equal(copy.deepcopy(sae)(x), sae(x))


def test_the_step_reports_the_code_entropy():
    sae = TrainingSAE.from_dict(BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K).to_dict())
    output = sae.training_forward_pass(TrainStepInput(torch.randn(500, D_IN), {}, None, 0, False))
    bits = output.metrics["code_entropy_bits"]
    assert callable(bits)
    assert 0 < bits().item() < D_SAE  # type: ignore[union-attr]
