"""`compare` puts ours beside a published coder of each stock architecture, by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY
from sparsify import SparseCoder, SparseCoderConfig
from transformers import Gemma2Config, Gemma2ForCausalLM

from sae_binary_ext.checkpoints import convert, describe
from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.commands import CompareConfig, EntropyConfig, run_compare, run_entropy
from sae_binary_ext.commands.interpret.config import TextAmount
from sae_binary_ext.commands.interpret.windows import read_latents
from sae_binary_ext.measure import load_candidates, value_bits
from sae_binary_ext.measure.in_model import reads_sequences
from sae_binary_ext.measure.reading import open_coders
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from sae_binary_ext.settings import TextConfig
from tests import published_layouts as layouts
from tests.hub_server import Hub
from tests.small_models import VOCABULARY, save_tokenizer

WIDTH, LATENTS, K, CONTEXT = 16, 64, 4, 16
MATRYOSHKA = "MatryoshkaBatchTopK_gemma-2-2b__0108/resid_post_layer_12/trainer_0"
MLP = {"hook_name": "blocks.12.mlp.hook_in", "hook_name_out": "blocks.12.hook_mlp_out"}
# Fields of an architecture that have no default.
NEEDED: dict[str, dict[str, Any]] = {
    "abstopk": {"k": K},
    "matching_pursuit": {"max_iterations": K, "residual_threshold": 0.0},
}


STOCK = {
    name for name, kinds in SAE_CLASS_REGISTRY.items() if kinds[0].__module__[:9] == "sae_lens."
}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 of 13 layers with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("tiny_gemma")
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=layouts.LAYER + 1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=VOCABULARY,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def own(architecture: str) -> layouts.Files:
    """A coder of SAELens in its own files, at the hook, or the hooks, of all the others."""
    fields = {"d_in": WIDTH, "d_sae": LATENTS, **NEEDED.get(architecture, {})}
    if transcoder := "transcoder" in architecture:
        fields |= {"d_out": WIDTH, "apply_b_dec_to_input": False}
    coder: Any = SAE.from_dict({"architecture": architecture, **fields})
    for name, parameter in coder.named_parameters():
        parameter.data.normal_(std=0.3)
        if name == "threshold":
            parameter.data.abs_()
    for key, value in (MLP if transcoder else {"hook_name": layouts.HOOK}).items():
        coder.cfg.metadata[key] = value
    return layouts.saved(coder, architecture)


def fill(hub: Hub) -> dict[str, str]:
    """Put a coder of each kind on the Hub. Returns its architecture by the name to load it by."""
    sizes = WIDTH, LATENTS, K
    saebench = "canrager/saebench_gemma-2-2b_width-2pow12_date-1109"
    matryoshka = "saebench_gemma-2-2b_width-2pow12_date-0108"
    found: dict[str, str] = {}
    for repository, path, kind, name, architecture in (
        (saebench, "gemma-2-2b_vanilla_width-2pow12_date-1109/resid_post_layer_12/trainer_0",
         "AutoEncoder", "sae_bench_gemma-2-2b_vanilla_width-2pow12_date-1109", "standard"),
        (saebench, "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0",
         "AutoEncoderTopK", "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "topk"),
        (f"adamkarvonen/{matryoshka}", MATRYOSHKA, "MatryoshkaBatchTopKSAE", matryoshka,
         "jumprelu"),
        ("me/dictionaries", "gated/trainer_0", "GatedAutoEncoder", "", "gated"),
        ("me/dictionaries", "batch_topk/trainer_0", "BatchTopKSAE", "", "jumprelu"),
        ("me/dictionaries", "jump_relu/trainer_0", "JumpReluAutoEncoder", "", "jumprelu"),
    ):  # fmt: skip
        hub.add(repository, layouts.dictionary_learning(path, kind, *sizes))
        trainer = f"{layouts.HOOK}__trainer_0"
        found[f"{name}/{trainer}" if name else f"{repository}/{path}"] = architecture
    hub.add("canrager/temporalSAEs", layouts.temporal("gemma-2-2B/layer_12/temporal", *sizes))
    found[f"temporal-sae-gemma-2-2b/{layouts.HOOK}"] = "temporal"
    scope = "google/gemma-scope-2-270m-pt"
    hub.add(scope, layouts.gemma_scope_2("resid_post/layer_12_width_16k_l0_big", WIDTH, LATENTS))
    found["gemma-scope-2-270m-pt-res/layer_12_width_16k_l0_big"] = "jumprelu"
    for architecture in ("abstopk", "matching_pursuit"):
        hub.add("me/stock", own(architecture))
        found[f"me/stock/{architecture}"] = architecture
    config = SparseCoderConfig(num_latents=LATENTS, k=K)
    hub.add("me/sparsify", layouts.saved(SparseCoder(WIDTH, config), "layers.12"))
    found["me/sparsify/layers.12"] = "topk"
    binary = BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K)
    binary.metadata.hook_name = layouts.HOOK
    hub.add("me/ours", layouts.saved(BinarySAE(binary), "binary"))
    found["me/ours/binary"] = "binary"
    return found


def fill_transcoders(hub: Hub) -> dict[str, str]:
    """As `fill`, for transcoders."""
    found: dict[str, str] = {}
    for architecture in ("skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        hub.add("me/stock", own(architecture))
        found[f"me/stock/{architecture}"] = architecture
    hub.add("mwhanna/qwen3-4b-transcoders", layouts.circuit_tracer(WIDTH, LATENTS))
    found["mwhanna-qwen3-4b-transcoders/layer_0"] = "transcoder"
    binary = BinaryTranscoderConfig(d_in=WIDTH, d_sae=LATENTS, d_out=WIDTH, k=K)
    for key, value in MLP.items():
        binary.metadata[key] = value
    hub.add("me/ours", layouts.saved(BinaryTranscoder(binary), "binary"))
    found["me/ours/binary"] = "binary_transcoder"
    return found


def compared(names: list[str], model: Path, text: Path, output: Path) -> tuple[str, list[Any]]:
    settings = CompareConfig(
        model=str(model), dataset=str(text), output=output, tokens=1000, spliced_tokens=200,
        context_size=CONTEXT, latents=8,
    )  # fmt: skip
    table = run_compare(names, settings)
    return table, json.loads((output / "metrics.json").read_text())["coders"]


@pytest.mark.integration
def test_ours_stands_beside_each_stock_architecture(
    hub: Hub, gemma: Path, tiny_dataset: Path, tmp_path: Path
):
    found = fill(hub)
    table, coders = compared(list(found), gemma, tiny_dataset, tmp_path / "out")
    assert {name for name in STOCK if "transcoder" not in name} <= set(found.values())
    assert [coder["architecture"] for coder in coders] == list(found.values())
    assert [coder["folder"] for coder in coders] == list(found)
    # All read one activation, so they are the rows of one table.
    assert len({coder["hook_name"] for coder in coders}) == 1
    for coder, candidate in zip(coders, load_candidates(list(found)), strict=True):
        assert coder["name"] in table
        assert coder["fvu"]["value"] >= 0
        # A code of 0 or 1 costs no bits for values. A stock code costs 8 bits an active latent.
        values = 8 * coder["l0"]["value"] * (not coder["binary"])
        assert coder["bits"]["value"] == pytest.approx(coder["entropy_bits"]["value"] + values)
        assert coder["binary"] == (candidate.coder.cfg.architecture() == "binary")
    # The bits of one coder, computed here by their definition from codes of plain SAELens.
    assert coders[1]["l0"]["value"] == pytest.approx(K, abs=0.01)
    model = open_coders(list(found)[1:2], _text(gemma, tiny_dataset), tmp_path)
    ((hook, _),) = model.hooks.values()
    batches = [batch for batch, _ in model.batches(1000)]
    release, _, own_id = list(found)[1].partition("/")
    coder = SAE.from_pretrained(release, own_id)
    codes = torch.cat([model.read(each).codes(coder, hook) for each in batches])
    expected = bernoulli_entropy((codes != 0).double().mean(0)).sum().item()
    assert coders[1]["entropy_bits"]["value"] == pytest.approx(expected, rel=1e-3)
    rows, where = (
        torch.cat(parts)
        for parts in zip(
            *((read.found[hook], read.where) for read in map(model.read, batches)), strict=True
        )
    )
    for told, candidate in zip(coders, load_candidates(list(found)), strict=True):
        values = told["mdl_bits"]["value"] - told["entropy_bits"]["value"]
        if reads_sequences(candidate.coder):
            bits = value_bits(candidate.coder, rows, rows[where], where=where)
        else:
            bits = value_bits(candidate.coder, rows[where], rows[where])
        assert values == pytest.approx(bits, rel=1e-3)
        assert told["name"] != "layers.12" or values > 1


@pytest.mark.integration
def test_transcoders_too(hub: Hub, gemma: Path, tiny_dataset: Path, tmp_path: Path):
    found = fill_transcoders(hub)
    table, coders = compared(list(found), gemma, tiny_dataset, tmp_path / "out")
    assert {name for name in STOCK if "transcoder" in name} <= set(found.values())
    assert [coder["architecture"] for coder in coders] == list(found.values())
    assert all(coder["name"] in table for coder in coders)


def _text(model: Path, dataset: Path) -> TextConfig:
    return TextConfig(model=str(model), dataset=str(dataset), context_size=CONTEXT)


@pytest.mark.integration
def test_other_commands_and_inspect_take_these_names(
    hub: Hub, gemma: Path, tiny_dataset: Path, tmp_path: Path
):
    names = list(fill(hub))
    own_sizes = f"{WIDTH} -> {LATENTS} latents -> {WIDTH}"
    for name in names:
        (described,) = describe(name)
        lines = dict(described.lines())
        assert lines["sizes"] == own_sizes
        assert lines["dtype"] == "float32"
        assert {"architecture", "selection"} <= lines.keys()
        assert lines.get("hook (SAELens)", lines.get("hookpoint (sparsify)")) in (
            layouts.HOOK, "layers.12"
        )  # fmt: skip
    some = [names[0], names[3], names[-2]]
    run_entropy(
        some,
        EntropyConfig(
            model=str(gemma), dataset=str(tiny_dataset), output=tmp_path / "entropy",
            tokens=480, context_size=CONTEXT,
        ),
    )  # fmt: skip
    assert (tmp_path / "entropy" / "entropy.html").is_file()
    opened = open_coders(some, _text(gemma, tiny_dataset), tmp_path)
    read_latents(opened, TextAmount(400, CONTEXT, 1, 5, 10), tmp_path / "read.safetensors", ())
    # What a conversion reads is a coder's folder, here inside a repository.
    (folder,) = convert("me/sparsify/layers.12", tmp_path / "converted", "saelens")
    assert describe(folder)[0].architecture == "TopK autoencoder"
