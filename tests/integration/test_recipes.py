"""Each recipe is what `sae-binary plan` writes, builds its coder, and trains a tiny model."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens import llm_sae_training_runner as saelens_runner
from simple_parsing import ArgumentParser, parse
from sparsify import SparseCoder
from sparsify.__main__ import RunConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from sae_binary_ext.cli import main
from sae_binary_ext.commands import PlanConfig
from sae_binary_ext.commands.plan.costs import Run
from sae_binary_ext.commands.plan.host_settings import saelens_settings, sparsify_settings
from sae_binary_ext.commands.plan.model_sizes import MODELS, find_sizes
from sae_binary_ext.saelens import train_transcoders
from tests.small_models import VOCABULARY, save_tokenizer

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
RECIPES = sorted(FOLDER.glob("*.args"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
WIDTH, LATENTS, STEPS, TOKENS = 16, 64, 3, 64


def words_of(path: Path) -> list[str]:
    """The arguments of a recipe, without -m and the name of the host's module."""
    return shlex.split(path.read_text(), comments=True)


def plan_of(path: Path) -> PlanConfig:
    """The plan that wrote a recipe, by the comment in it."""
    _, _, arguments = path.read_text().partition("written by: sae-binary plan")
    parser = ArgumentParser()
    parser.add_arguments(PlanConfig, dest="plan")
    return parser.parse_args(shlex.split(arguments.partition("\n")[0])).plan


def tiny_config(model_type: str, layers: int) -> PretrainedConfig:
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    if model_type == "gpt2":
        return GPT2Config(n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=64, **shared)
    kind = {"llama": LlamaConfig, "gemma2": Gemma2Config, "qwen3": Qwen3Config}[model_type]
    return kind(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=1,
        **shared,
    )


@pytest.fixture
def tiny_model(path: Path, tmp_path: Path) -> Path:
    """A model of the recipe's type with random weights, and as many layers as the recipe needs."""
    folder, plan = tmp_path / "model", plan_of(path)
    torch.manual_seed(0)
    config = tiny_config(MODELS[plan.model]["model_type"], (plan.layer or 0) + 1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_every_model_has_a_recipe_for_each_host():
    names = {path.name.removesuffix(".args") for path in RECIPES}
    models = {name.rpartition("/")[2].lower() for name in MODELS} - {"smollm2-135m-instruct"}
    wanted = {f"{model}.{host}" for model in models for host in ("saelens", "sparsify")}
    # SAELens trains in one process.
    assert names == wanted - {"llama-3.1-8b.saelens"}


@each_recipe
def test_the_recipe_is_what_plan_writes(path: Path):
    plan = plan_of(path)
    run = Run.of(plan, find_sizes(plan.model))
    settings = saelens_settings if path.stem.endswith("saelens") else sparsify_settings
    assert path.read_text() == settings(plan, run.sizes, run.layer, run.latents)


@each_recipe
def test_the_recipe_s_coder_has_the_planned_weights(path: Path):
    plan = plan_of(path)
    run = Run.of(plan, find_sizes(plan.model))
    _, module, *words = words_of(path)
    coder: torch.nn.Module
    if module == "sparsify":
        config = parse(RunConfig, args=shlex.join(words)).sae
        with torch.device("meta"):
            coder = SparseCoder(run.sizes.width, config, device="meta")
    else:
        parsed: Any = (
            saelens_runner._parse_cfg_args(words)  # pyright: ignore[reportPrivateUsage]
            if module == "sae_lens.llm_sae_training_runner"
            else train_transcoders.parse(words)
        )
        coder = TrainingSAE.from_dict(parsed.sae.to_dict() | {"device": "meta"})
    assert sum(each.numel() for each in coder.parameters()) == run.weights()
    assert {each.device.type for each in coder.parameters()} == {"meta"}


@each_recipe
def test_the_recipe_trains_a_tiny_model(
    path: Path,
    tiny_model: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(path)
    names = {plan.model: str(tiny_model), plan.dataset: str(tiny_dataset)}
    is_saelens = path.stem.endswith("saelens")
    smaller: dict[str, Any] = (
        {
            "d_in": WIDTH,
            "d_sae": LATENTS,
            "context_size": 16,
            "train_batch_size_tokens": TOKENS,
            "training_tokens": STEPS * TOKENS,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 2,
            "streaming": False,
            "device": "cpu",
            "sae.device": "cpu",
        }
        if is_saelens
        else {
            "num_latents": LATENTS,
            "ctx_len": 16,
            "batch_size": TOKENS // 16,
            "max_examples": STEPS * TOKENS // 16,
            "data_preprocessing_num_proc": 1,
        }
    )
    words = [names.get(word, word) for word in words_of(path)]
    words += [word for name, value in smaller.items() for word in (f"--{name}", str(value))]
    if "--k" in words:
        words += ["--k", "4"]
    words += ["--seqpos_slice", "1", "16"] if is_saelens else []
    (tmp_path / "tiny.args").write_text(f"# tiny\n{shlex.join(words)}\n")
    assert main(["run", "@tiny.args"]) == 0

    if is_saelens:
        (folder,) = (each.parent for each in (tmp_path / "output").rglob("sae_weights.safetensors"))
        coder: Any = SAE.load_from_disk(folder)
        shape = (coder.cfg.d_in, coder.cfg.d_sae)
    else:
        (folder,) = (each.parent for each in (tmp_path / "checkpoints").rglob("cfg.json"))
        coder = SparseCoder.load_from_disk(folder)
        shape = (coder.d_in, coder.num_latents)
        state = torch.load(tmp_path / "checkpoints" / "run" / "state.pt")
        assert state["global_step"] == STEPS
    assert shape == (WIDTH, LATENTS)
    assert str(plan.layer) in (folder.name if not is_saelens else coder.cfg.metadata.hook_name)
    assert type(coder).__name__.startswith(("Binary", "Refined"))
