"""The runner trains transcoders of a tiny Llama and of SmolLM2, and they work in the model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from datasets import Dataset
from sae_lens import SAE, LoggingConfig, TrainingSAE
from sae_lens.load_model import HookedProxyLM, load_model

from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.measure import SplicedModel, measure, read_pairs
from sae_binary_ext.saelens import (
    BinaryTrainingSAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
    TranscoderTrainingRunner,
)
from tests.integration.saelens_helpers import bridge, hooked_transformer

pytestmark = pytest.mark.integration

SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 128, "k": 8}
BRIDGE_HOOKS = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
MODULES = ("model.layers.1.post_attention_layernorm", "model.layers.1.mlp")
ROUTES = {"bridge": BRIDGE_HOOKS, "AutoModelForCausalLM": MODULES}
each_route = pytest.mark.parametrize("route", ROUTES)


def all_kinds(**fields: Any) -> dict[str, Any]:
    """A config of each kind of transcoder that the runner trains, by name."""
    settings = {"normalize_activations": "expected_average_only_in", **fields}
    binary = BinaryTranscoderTrainingSAEConfig
    return {
        **{
            f"{selection}{'-skip' if skip else ''}": binary(
                selection=selection, skip_connection=skip, **settings
            )
            for selection in ("topk", "threshold", "groupmax")
            for skip in (False, True)
        },
        "entropy": binary(selection="threshold", entropy_coefficient=3e-4, **settings),
        "auxk": binary(aux_loss_coefficient=0.1, **settings),
        "continuous": TopKTranscoderTrainingSAEConfig(**settings),
        "continuous-skip": TopKTranscoderTrainingSAEConfig(skip_connection=True, **settings),
    }


def run_config(saes: dict[str, Any], hooks: tuple[str, str], **settings: Any) -> Any:
    return TranscoderRunnerConfig(
        saes=saes,
        hook_name=hooks[0],
        hook_name_out=hooks[1],
        **{
            "model_class_name": "AutoModelForCausalLM",
            "streaming": False,
            "context_size": 16,
            "seqpos_slice": (1, None),
            "train_batch_size_tokens": 64,
            "training_tokens": 30 * 64,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 3,
            "dead_feature_window": 10,  # so that AuxK acts
            "lr": 1e-2,
            "logger": LoggingConfig(log_to_wandb=False),
            "checkpoint_path": None,
            "output_path": None,
            **settings,
        },
    )


def model_of(route: str, folder: Path) -> Any:
    if route == "bridge":
        return bridge(folder)
    return load_model(route, str(folder), device="cpu", hook_names=list(ROUTES[route]))


@each_route
def test_every_kind_trains_on_the_same_pairs_and_loads(
    route: str, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    hooks = ROUTES[route]
    saes = all_kinds(**SIZES)
    config = run_config(
        saes,
        hooks,
        model_name=str(tiny_model_folder),
        dataset_path=str(tiny_dataset),
        output_path=str(tmp_path),
        training_tokens=300 * 64,
        prefetch_llm_batches=True,
    )
    # The runner loads an AutoModelForCausalLM itself. A bridge is passed to it.
    given = model_of(route, tiny_model_folder) if route == "bridge" else None
    trained = TranscoderTrainingRunner(config, override_model=given).run()

    rows = torch.randint(2, 60, (40, 16))
    model = model_of(route, tiny_model_folder)
    inputs, targets = read_pairs(model, rows, *hooks, first_position=1)
    spliced = SplicedModel(model, rows, *hooks, first_position=1)
    for name, cfg in saes.items():
        loaded: Any = SAE.load_from_disk(tmp_path / name)
        assert type(loaded) is (TopKTranscoder if "continuous" in name else BinaryTranscoder)
        torch.testing.assert_close(loaded(inputs), trained[name](inputs), rtol=1e-4, atol=1e-4)
        metadata = loaded.cfg.metadata
        assert (metadata.hook_name, metadata.hook_name_out) == hooks
        assert metadata.model_name == str(tiny_model_folder)
        figures = measure(loaded, inputs, targets)
        assert figures.fvu < 0.9, name
        most = 128 if getattr(cfg, "selection", "") == "threshold" else SIZES["k"]
        # The mean of equal numbers of active latents may differ from them by rounding.
        assert 0 < figures.l0 <= most * (1 + 1e-12), name
        # The loss with a transcoder is nearer to the model's loss than the loss with zeros is. The
        # text is random, so the loss may lie below or above the model's loss.
        assert abs(spliced.losses(loaded).recovered - 1) < 0.9, name
    settings = json.loads((tmp_path / "runner_cfg.json").read_text())
    assert (settings["hook_name"], settings["hook_name_out"]) == hooks


@each_route
def test_a_run_resumes_from_its_checkpoint(
    route: str, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    """A resumed run ends near the first one, not bit for bit, because the runner's store refills
    its buffer. tests/saelens checks that the trainer alone resumes exactly."""

    def run(seed: int, **settings: Any) -> dict[str, TrainingSAE[Any]]:
        torch.manual_seed(seed)
        config = run_config(
            all_kinds(**SIZES),
            ROUTES[route],
            model_name=str(tiny_model_folder),
            dataset_path=str(tiny_dataset),
            lr=1e-3,
            lrs={"continuous": 2e-3},
            **settings,
        )
        given = model_of(route, tiny_model_folder) if route == "bridge" else None
        return TranscoderTrainingRunner(config, override_model=given).run()

    first = run(0, n_checkpoints=1, checkpoint_path=str(tmp_path))
    (checkpoint,) = tmp_path.glob("*/*")
    assert (checkpoint / "runner_cfg.json").is_file()
    resumed = run(1, resume_from_checkpoint=str(checkpoint))
    fresh = run(1)

    def alike(saes: dict[str, TrainingSAE[Any]], name: str) -> float:
        return torch.cosine_similarity(saes[name].W_enc, first[name].W_enc, dim=0).mean().item()

    for name in first:
        assert alike(resumed, name) > 0.99, name
        assert alike(fresh, name) < 0.5, name


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    # An earlier test may have started a wandb session, which would keep its old settings.
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("offline_wandb")
def test_a_run_logs_what_saelens_logs(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged: dict[str, Any] = {}
    log = wandb.Run.log

    def remember(run: wandb.Run, data: dict[str, Any], *rest: Any, **settings: Any) -> None:
        logged.update(data)
        log(run, data, *rest, **settings)

    monkeypatch.setattr(wandb.Run, "log", remember)
    kinds = all_kinds(**SIZES)
    config = run_config(
        {name: kinds[name] for name in ("topk-skip", "continuous")},
        MODULES,
        model_name=str(tiny_model_folder),
        dataset_path=str(tiny_dataset),
        training_tokens=40 * 64,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=str(tmp_path / "out"),
        evaluator=lambda sae, pairs, scaler: {"pair_width": next(pairs).shape[1]},
        n_eval_batches=2,
        logger=LoggingConfig(wandb_log_frequency=10, eval_every_n_wandb_logs=2),
    )
    TranscoderTrainingRunner(config).run()
    for name in ("topk-skip", "continuous"):
        assert logged[f"{name}/losses/mse_loss"] > 0
        assert 0 < logged[f"{name}/metrics/explained_variance"] < 1
        assert 0 < logged[f"{name}/metrics/l0"] <= 8
        assert logged[f"{name}/pair_width"] == 32
        losses = logged[f"{name}/model_performance_preservation"]
        share = (losses["ce_loss_with_ablation"] - losses["ce_loss_with_sae"]) / (
            losses["ce_loss_with_ablation"] - losses["ce_loss_without_sae"]
        )
        assert losses["ce_loss_score"] == pytest.approx(share)
        assert abs(share - 1) < 0.9
    assert "topk-skip/metrics/code_entropy_bits" in logged
    assert list(tmp_path.glob("wandb/offline-run-*"))


def attachable(model: Any, skip: bool, hooks: tuple[str, str] = BRIDGE_HOOKS) -> list[Any]:
    """A binary and a continuous transcoder of a model's MLP, with random parameters."""
    width = model.cfg.d_model
    shared: dict[str, Any] = {"d_in": width, "d_sae": 64, "k": 8, "skip_connection": skip}
    coders: list[Any] = [
        BinaryTranscoder(BinaryTranscoderConfig(**shared)),
        TopKTranscoder(TopKTranscoderConfig(**shared)),
    ]
    for coder in coders:
        coder.cfg.metadata.hook_name, coder.cfg.metadata.hook_name_out = hooks
        for parameter in coder.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return coders


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make_model", [hooked_transformer, bridge])
def test_a_transcoder_replaces_the_mlp_in_saelens_models(
    make_model: Any, skip: bool, tiny_model_folder: Path
):
    model = make_model(tiny_model_folder)
    tokens = torch.randint(2, 60, (3, 12))
    for coder in attachable(model, skip):
        with torch.no_grad():
            clean = model(tokens)
            inputs, _ = read_pairs(model, tokens, *BRIDGE_HOOKS)
            spliced, cache = model.run_with_cache_with_saes(tokens, saes=[coder])
            with_error = model.run_with_saes(tokens, saes=[coder], use_error_term=True)
            model.add_sae(coder)
            attached = model(tokens)
            model.reset_saes()
            after = model(tokens)
            # The model continues with the coder's output, which includes the part from W_skip.
            put_in = next(v for k, v in cache.items() if k.endswith("hook_sae_output"))
            torch.testing.assert_close(put_in.flatten(0, 1), coder(inputs))
            losses = SplicedModel(model, tokens, *BRIDGE_HOOKS).losses(coder)
            expected = model.run_with_saes(tokens, saes=[coder], return_type="loss")
        assert not torch.allclose(spliced, clean, atol=1e-3)
        torch.testing.assert_close(attached, spliced)
        torch.testing.assert_close(with_error, clean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after, clean)
        assert losses.spliced == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("route", "changes", "message"),
    [
        ("bridge", {"hook_name": "blocks.1.nowhere"}, "hook_name='blocks.1.nowhere'.*blocks.1.mlp"),
        ("bridge", {"hook_name_out": "blocks.7.hook_mlp_out"}, "hook_name_out='blocks.7.hook_mlp"),
        ("bridge", {"hook_name": "blocks.1.hook_mlp_in"}, "does not pass through"),
        ("bridge", {"hook_name_out": "blocks.1.attn.hook_pattern"}, "different numbers of tokens"),
        ("bridge", {"hook_name_out": "blocks.1.mlp.in.hook_out"}, "d_out=16.*32 wide"),
        ("bridge", {"saes": {"wide": {"d_out": 20}}}, "d_out=20.*16 wide"),
        ("AutoModelForCausalLM", {"hook_name_out": "model.layers.1.nlp"}, "model.layers.1.nlp"),
        ("AutoModelForCausalLM", {"saes": {"wide": {"d_in": 20}}}, "d_in=20.*16 wide"),
    ],
)  # fmt: skip
def test_hooks_that_make_no_pairs_stop_the_run_before_it_starts(
    route: str, changes: dict[str, Any], message: str, tiny_model_folder: Path, tiny_dataset: Path
):
    hooks = dict(zip(("hook_name", "hook_name_out"), ROUTES[route], strict=True))
    fields = changes.get("saes", {"it": {}})
    saes = {
        name: BinaryTranscoderTrainingSAEConfig(**{**SIZES, "d_out": 16, **field})
        for name, field in fields.items()
    }
    named = {**hooks, **{key: value for key, value in changes.items() if key in hooks}}
    config = run_config(
        saes,
        (named["hook_name"], named["hook_name_out"]),
        model_name=str(tiny_model_folder),
        dataset_path=str(tiny_dataset),
    )
    given = model_of(route, tiny_model_folder) if route == "bridge" else None
    with pytest.raises(ValueError, match=message):
        TranscoderTrainingRunner(config, override_model=given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hook_name_out": BRIDGE_HOOKS[0]}, "is hook_name too"),
        ({"saes": {"sae": BinaryTrainingSAEConfig(**SIZES)}}, "saes.'sae'. is a BinaryTraining"),
        (
            {
                "saes": {
                    "a": BinaryTranscoderTrainingSAEConfig(**SIZES),
                    "b": BinaryTranscoderTrainingSAEConfig(**SIZES, d_out=20),
                }
            },
            r"\(16, 16\), \(16, 20\)",
        ),
        ({"lrs": {"other": 1e-3}}, "lrs of .'other'."),
        ({"saes": {}}, "at least one"),
    ],
)
def test_configs_that_make_no_run_are_refused(settings: dict[str, Any], message: str):
    given: dict[str, Any] = {
        "saes": {"it": BinaryTranscoderTrainingSAEConfig(**SIZES)},
        "hook_name": BRIDGE_HOOKS[0],
        "hook_name_out": BRIDGE_HOOKS[1],
    }
    with pytest.raises(ValueError, match=message):
        TranscoderRunnerConfig(**{**given, **settings})


@each_route
def test_smollm2_s_mlp_is_transcoded(route: str, smollm2_folder: Path, tmp_path: Path):
    """Each kind of transcoder learns layer 0's MLP of a real model on real text."""
    hooks = (
        ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
        if route == "bridge"
        else ("model.layers.0.post_attention_layernorm", "model.layers.0.mlp")
    )
    model: Any
    if route == "bridge":
        model = bridge(smollm2_folder)
    else:
        model = load_model(route, str(smollm2_folder), device="cpu", hook_names=list(hooks))
        assert isinstance(model, HookedProxyLM)
    texts = [text for _, text in read_wikipedia_sample()]
    saes = all_kinds(d_in=576, d_sae=1152, k=32)
    config = run_config(
        saes,
        hooks,
        model_name=str(smollm2_folder),
        context_size=128,
        train_batch_size_tokens=256,
        training_tokens=60 * 256,
        n_batches_in_buffer=8,
        output_path=str(tmp_path),
    )
    dataset = Dataset.from_dict({"text": texts[:6]})
    TranscoderTrainingRunner(config, override_dataset=dataset, override_model=model).run()

    begin = torch.full((4, 1), model.tokenizer.bos_token_id)
    held_out = torch.tensor(model.tokenizer(texts[7]).input_ids[: 4 * 63]).view(4, 63)
    rows = torch.cat([begin, held_out], dim=1)
    inputs, targets = read_pairs(model, rows, *hooks, first_position=1)
    spliced = SplicedModel(model, rows, *hooks, first_position=1)
    for name in saes:
        loaded = SAE.load_from_disk(tmp_path / name)
        assert measure(loaded, inputs, targets).fvu < 0.9, name
    for name in ("topk", "entropy", "continuous-skip"):
        assert spliced.losses(SAE.load_from_disk(tmp_path / name)).recovered > 0.3, name
