"""The runner trains transcoders of all layers of a tiny Llama, a few layers in each pass."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE

from sae_binary_ext.saelens import (
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
    TranscoderTrainingRunner,
)
from sae_binary_ext.saelens.pair_trainer import StreamTrainer
from sae_binary_ext.saelens.train_transcoders import main
from tests.integration.saelens_helpers import bridge
from tests.small_models import save_llama

pytestmark = pytest.mark.integration

SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 64, "k": 4}
MODULES = ("model.layers.{layer}.post_attention_layernorm", "model.layers.{layer}.mlp")
BRIDGE_HOOKS = ("blocks.{layer}.mlp.hook_in", "blocks.{layer}.hook_mlp_out")
LAYERS = 3
STEP = 64


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a three-layer Llama of random weights."""
    folder = tmp_path_factory.mktemp("three_layers")
    save_llama(folder, LAYERS)
    return folder


@pytest.fixture(scope="module")
def run_with(model_folder: Path, tiny_dataset: Path) -> Any:
    """Makes a run's config; its kinds of transcoders draw random numbers in their steps."""

    def config(**settings: Any) -> TranscoderRunnerConfig:
        saes: dict[str, Any] = {
            "gumbel": BinaryTranscoderTrainingSAEConfig(
                selection="gumbel", normalize_activations="expected_average_only_in", **SIZES
            ),
            "continuous": TopKTranscoderTrainingSAEConfig(
                normalize_activations="covariance_whitening", **SIZES
            ),
        }
        defaults: dict[str, Any] = {
            "saes": saes,
            "hook_name": MODULES[0],
            "hook_name_out": MODULES[1],
            "model_name": str(model_folder),
            "model_class_name": "AutoModelForCausalLM",
            "dataset_path": str(tiny_dataset),
            "streaming": False,
            "context_size": 16,
            "seqpos_slice": (1, None),
            "train_batch_size_tokens": STEP,
            "training_tokens": 12 * STEP,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 3,
            "lr": 1e-2,
            "lrs": {"continuous": 2e-2},
            "logger": LoggingConfig(log_to_wandb=False),
            "checkpoint_path": None,
            "output_path": None,
        }
        return TranscoderRunnerConfig(**{**defaults, **settings})

    return config


def run(config: TranscoderRunnerConfig, **given: Any) -> dict[str, TrainingSAE[Any]]:
    torch.manual_seed(0)
    return TranscoderTrainingRunner(config, **given).run()


@pytest.fixture(scope="module")
def at_once(run_with: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All layers trained in one pass, and the folder with the saved transcoders."""
    folder = tmp_path_factory.mktemp("at_once")
    return run(run_with(output_path=str(folder))), folder


def check_equal(found: dict[str, TrainingSAE[Any]], expected: dict[str, TrainingSAE[Any]]) -> None:
    for name, sae in found.items():
        torch.testing.assert_close(
            sae.state_dict(), expected[name].state_dict(), rtol=0, atol=0, msg=name
        )


def test_each_layer_s_transcoders_are_saved_in_a_folder_of_layers(at_once: Any):
    trained, folder = at_once
    expected = {f"{kind}/layers.{n}" for kind in ("gumbel", "continuous") for n in range(LAYERS)}
    assert set(trained) == expected
    assert {str(path.parent.relative_to(folder)) for path in folder.rglob("cfg.json")} == expected
    x = torch.randn(20, 16)
    for name, sae in trained.items():
        loaded: Any = SAE.load_from_disk(folder / name)
        torch.testing.assert_close(loaded(x), sae.eval()(x), rtol=1e-4, atol=1e-4)
        layer = name.rpartition(".")[2]
        hooks = (loaded.cfg.metadata.hook_name, loaded.cfg.metadata.hook_name_out)
        assert hooks == tuple(hook.replace("{layer}", layer) for hook in MODULES)
    assert set(json.loads((folder / "runner_cfg.json").read_text())["saes"]) == expected


@pytest.mark.parametrize("layers", [[0], [2], range(1, 3)], ids=str)
def test_a_layer_learns_the_same_without_the_others(layers: Any, run_with: Any, at_once: Any):
    found = run(run_with(layers=layers))
    assert len(found) == 2 * len(layers)
    check_equal(found, at_once[0])


def test_a_run_of_named_hooks_learns_the_same(run_with: Any, at_once: Any):
    """Hooks of each transcoder by name, as SAELens' hook_names."""
    whole = run_with()
    single = run_with(
        saes={f"{name}/layers.1": sae for name, sae in whole.saes.items()},
        hook_name={f"{name}/layers.1": MODULES[0].replace("{layer}", "1") for name in whole.saes},
        hook_name_out=MODULES[1].replace("{layer}", "1"),
        lrs={"continuous/layers.1": 2e-2},
    )
    check_equal(run(single), at_once[0])


@pytest.mark.parametrize(("memory_gb", "count"), [(1e-6, 3), (6e-4, 2), (1.0, 1)])
def test_passes_of_a_few_layers_learn_the_same(
    memory_gb: float, count: int, run_with: Any, at_once: Any, tmp_path: Path
):
    torch.manual_seed(0)
    runner = TranscoderTrainingRunner(run_with(memory_gb=memory_gb, output_path=str(tmp_path)))
    assert len(runner._passes) == count
    first, *others = [sae.W_enc for name, sae in runner.saes.items() if "gumbel" in name]
    assert not any(torch.equal(first, other) for other in others)
    found = runner.run()
    assert set(found) == set(at_once[0])
    check_equal(found, at_once[0])
    assert len(list(tmp_path.rglob("cfg.json"))) == 2 * LAYERS


def test_an_interrupted_run_of_several_passes_resumes(
    run_with: Any, at_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second pass is interrupted at its seventh step. The resumed run trains what is left."""
    settings: dict[str, Any] = {"memory_gb": 1e-6, "output_path": str(tmp_path / "out")}
    step, calls = StreamTrainer.step, itertools.count()

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2 * (12 + 6):
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(StreamTrainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(run_with(checkpoint_path=str(tmp_path / "checkpoints"), **settings))
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/from-2/*")
    assert checkpoint.name == str(6 * STEP)

    found = run(run_with(resume_from_checkpoint=str(checkpoint), **settings))
    assert set(found) == {f"{kind}/layers.{n}" for kind in ("gumbel", "continuous") for n in (1, 2)}
    assert len(list((tmp_path / "out").rglob("cfg.json"))) == 2 * LAYERS
    for name, sae in found.items():
        expected = at_once[0][name]
        # The store of a resumed pass begins with an empty buffer, so that pass sees other batches.
        alike = torch.cosine_similarity(sae.W_enc, expected.W_enc, dim=0).mean()
        assert alike > 0.9
        assert torch.equal(sae.W_enc, expected.W_enc) == name.endswith("layers.2")


def test_a_bridge_s_layers_learn_what_the_model_s_do(run_with: Any, model_folder: Path):
    config = run_with(hook_name=BRIDGE_HOOKS[0], hook_name_out=BRIDGE_HOOKS[1], layers=[1, 2])
    found = run(config, override_model=bridge(model_folder))
    hooks = [hook.replace("{layer}", "2") for hook in BRIDGE_HOOKS]
    metadata = found["gumbel/layers.2"].cfg.metadata
    assert [metadata.hook_name, metadata.hook_name_out] == hooks
    expected = run(run_with(layers=[1, 2]))
    # A bridge computes with other roundings, which change which latents fire.
    for name in ("continuous/layers.1", "continuous/layers.2"):
        assert torch.cosine_similarity(found[name].W_dec, expected[name].W_dec).median() > 0.99


def test_one_command_trains_all_layers(model_folder: Path, tiny_dataset: Path, tmp_path: Path):
    options = f"""--architecture topk_transcoder --d_in 16 --d_sae 64 -k 4 --dtype float32
        --hook_name {MODULES[0]} --hook_name_out {MODULES[1]} --model_name {model_folder}
        --model_class_name AutoModelForCausalLM --dataset_path {tiny_dataset} --streaming false
        --context_size 16 --seqpos_slice 1 None --train_batch_size_tokens 64 --layers 0 2
        --training_tokens 768 --store_batch_size_prompts 8 --n_batches_in_buffer 16 --lr 0.01
        --log_to_wandb false --output_path {tmp_path / "out"} --checkpoint_path {tmp_path}"""
    main(options.split())
    for layer in (0, 2):
        saved = SAE.load_from_disk(tmp_path / "out" / "topk_transcoder" / f"layers.{layer}")
        assert saved.cfg.metadata.seqpos_slice == [1, None]


def test_the_command_s_help_says_what_the_options_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([])
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--architecture", "--layers", "--memory_gb", "--k", "--hook_name_out"):
        assert option in shown, option
    for text in ("without this option, all layers", "blocks.{layer}.hook_mlp_out"):
        assert text in shown
    assert "pyright" not in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hook_name_out": "model.layers.1.mlp"}, "only one has {layer}"),
        ({"layers": []}, "layers=.*at least one layer"),
        ({"hook_name": "a", "hook_name_out": "b", "layers": [1]}, "layers=.1.*hooks with {layer}"),
        ({"hook_name_out": {"gumbel": "a"}}, "hook_name_out has the names .'gumbel'"),
        ({"memory_gb": 0.0}, "memory_gb=0.0.*above 0"),
        ({"layers": [7]}, "model.layers.7"),
    ],
)
def test_runs_without_layers_are_refused(settings: dict[str, Any], message: str, run_with: Any):
    with pytest.raises(ValueError, match=message):
        TranscoderTrainingRunner(run_with(**settings))
