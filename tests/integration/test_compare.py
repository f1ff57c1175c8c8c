"""Tests of `sae-binary compare` on a tiny model, with coders of both hosts."""

import csv
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    SAETransformerBridge,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.multi_sae_training_runner import MultiSAEEvaluator
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor, nn

from sae_binary_ext.cli import main
from sae_binary_ext.commands.compare.compare_run import run_compare
from sae_binary_ext.measure import candidates, comparison, in_model
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from tests.integration.compare_helpers import CONTEXT, HOOK, LATENTS, WIDTH, config_of, save_coders

pytestmark = pytest.mark.integration

# Figures that both SAELens and this package measure, as SAELens' group and key, and our key.
SAME = (
    ("model_behavior_preservation", "kl_div_with_sae", "kl_divergence"),
    ("model_performance_preservation", "ce_loss_with_sae", "cross_entropy_spliced"),
    ("model_performance_preservation", "ce_loss_without_sae", "cross_entropy_clean"),
    ("reconstruction_quality", "explained_variance", "explained_variance"),
    ("reconstruction_quality", "cossim", "cosine"),
    ("sparsity", "l0", "l0"),
)


@pytest.fixture
def coders(tmp_path: Path, tiny_model_folder: Path) -> list[str]:
    return save_coders(tmp_path, tiny_model_folder)


def test_coders_of_both_hosts_stand_in_one_table(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    output = tmp_path / "out"
    options = [f"--{name}={value}" for name, value in (
        ("model", tiny_model_folder), ("dataset", tiny_dataset), ("output", output),
        ("tokens", 2000), ("spliced_tokens", 1000), ("context_size", CONTEXT),
    )]  # fmt: skip
    assert main(["compare", *coders, *options]) == 0
    printed = capsys.readouterr().out
    document = json.loads((output / "metrics.json").read_text())
    assert document["schema_version"] == 1
    assert document["versions"].keys() >= {"torch", "sae-lens", "eai-sparsify"}
    found = {coder["name"]: coder for coder in document["coders"]}
    assert set(found) == {"binary", "stock", "run/layers.0", "binary/layers.0"}
    for name, coder in found.items():
        assert name in printed
        assert coder["binary"] == ("binary" in name)
        assert coder["hook_name"] == HOOK
        assert 2000 <= coder["tokens"] < 2200
        low, high = coder["fvu"]["interval"]
        assert low < coder["fvu"]["value"] < high
        assert 0 < coder["l0"]["value"] <= 5
        assert coder["kl_divergence"]["value"] > 0
        assert coder["matches"].keys() == set(found) - {name}
        assert all(-1 <= each["median_correlation"] <= 1 for each in coder["matches"].values())
    assert document["meanings"].keys() <= found["stock"].keys()
    report = (output / "report.html").read_text()
    assert all(f">{name}<" in report for name in found)
    with (output / "metrics.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for name, coder in found.items():
        assert float(rows[name]["fvu"]) == coder["fvu"]["value"]
        assert float(rows[name]["fvu_high"]) == coder["fvu"]["interval"][1]


def test_figures_agree_with_saelens_own(
    coders: list[str], tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    # SAELens' rows continue into the next text and ours do not, so here each text fills one row.
    config = config_of(
        tiny_model_folder, tiny_dataset, tmp_path / "out", tokens=480, spliced_tokens=480
    )
    for name in ("binary", "stock"):
        path = tmp_path / name / "cfg.json"
        # This is the bridge's own name of the hook. SAELens calls the bridge's run_with_hooks,
        # which silently ignores any other name.
        path.write_text(path.read_text().replace(HOOK, "blocks.0.hook_out"))
    width = CONTEXT - 1
    texts = [" ".join(f"w{(7 * row + i) % 58 + 2}" for i in range(width)) for row in range(32)]
    (tmp_path / "text").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "text" / f"{number:02}.txt").write_text(text)
    config.dataset = str(tmp_path / "text")
    run_compare(coders[:2], config)
    ours = {
        coder["name"]: coder
        for coder in json.loads((tmp_path / "out" / "metrics.json").read_text())["coders"]
    }
    model = SAETransformerBridge.boot_transformers(str(tiny_model_folder), device="cpu")
    tokens = torch.tensor([[0, *(int(word[1:]) for word in text.split())] for text in texts])
    for name in ("binary", "stock"):
        sae = SAE.load_from_disk(str(tmp_path / name))
        store = ActivationsStore.from_sae(
            model, sae, str(tiny_dataset), context_size=CONTEXT, store_batch_size_prompts=8
        )
        # run_evals reads the rows twice: once for the model's loss, once for sparsity and variance.
        batches = iter([*tokens.split(8), *tokens.split(8)])
        store.get_batch_tokens = lambda *_, rows=batches: next(rows)
        evaluation = EvalConfig(
            batch_size_prompts=8,
            n_eval_reconstruction_batches=4,
            n_eval_sparsity_variance_batches=4,
            compute_kl=True,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        )
        theirs, _ = run_evals(
            sae, store, model, ActivationScaler(), evaluation, exclude_special_tokens=[0]
        )
        for group, key, figure in SAME:
            expected = theirs[group][key]
            assert ours[name][figure]["value"] == pytest.approx(expected, rel=1e-4), key


def test_saelens_evaluator_takes_binary_coders_in_training(
    tiny_model_folder: Path, tiny_dataset: Path
):
    model = SAETransformerBridge.boot_transformers(str(tiny_model_folder), device="cpu")
    sizes: dict[str, Any] = {
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "metadata": SAEMetadata(hook_name="blocks.0.hook_out", prepend_bos=True),
    }
    configs = {
        "binary": BinaryTrainingSAEConfig(**sizes, k=5),
        "binary_entropy": BinaryEntropyTrainingSAEConfig(**sizes),
        "topk": TopKTrainingSAEConfig(**sizes, k=5),
    }
    saes: dict[str, Any] = {
        name: TrainingSAE.from_dict(config.to_dict()) for name, config in configs.items()
    }
    store = ActivationsStore.from_sae(
        model, saes["topk"], str(tiny_dataset), context_size=CONTEXT, store_batch_size_prompts=8
    )
    evaluate = MultiSAEEvaluator(model, store, 8, 2, {})
    scalers = {name: ActivationScaler() for name in saes}
    unused: Any = None
    found = evaluate(saes, unused, scalers, dict.fromkeys(saes, "blocks.0.hook_out"))
    for name in saes:
        kept = found[f"{name}/model_performance_preservation"]
        assert kept["ce_loss_with_sae"] > 0
        assert kept["ce_loss_with_sae"] != kept["ce_loss_without_sae"]
        assert 0 < found[f"{name}/sparsity"]["l0"] <= LATENTS


def test_memory_does_not_grow_with_the_tokens(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    held: list[int] = []

    def read_hooks(*args: Any) -> Any:
        gc.collect()
        tensors = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
        # Sparse tensors that another test left have no storage.
        storages = [each.untyped_storage() for each in tensors if each.layout is torch.strided]
        held.append(sum({each.data_ptr(): each.nbytes() for each in storages}.values()))
        return in_model.read_hooks(*args)

    monkeypatch.setattr(candidates, "read_hooks", read_hooks)
    # The first tokens are read again to quantise values: here one batch.
    monkeypatch.setattr(comparison, "VALUE_TOKENS", 1)
    run_compare(coders, config_of(tiny_model_folder, tiny_dataset, tmp_path / "out"))
    assert len(held) == 19 + 1
    # Only counts stay in memory from one batch to the next. The activations of one batch would be
    # 7 kB, and its codes more. The last batch is that of the values, beside the finished figures.
    assert max(held[3:-1]) - min(held[3:-1]) < 7000


def test_what_cannot_be_compared_is_refused(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    names = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
    metadata = SAEMetadata(model_name=str(tiny_model_folder), **names)
    transcoder = tmp_path / "transcoder"
    BinaryTranscoder(
        BinaryTranscoderConfig(d_in=WIDTH, d_sae=LATENTS, d_out=WIDTH, k=5, metadata=metadata)
    ).save_model(transcoder)
    wide = tmp_path / "wide"
    place = SAEMetadata(model_name=str(tiny_model_folder), hook_name=HOOK)
    TopKSAE(TopKSAEConfig(d_in=2 * WIDTH, d_sae=LATENTS, k=5, metadata=place)).save_model(wide)
    elsewhere = tmp_path / "elsewhere"
    place = SAEMetadata(model_name=str(tiny_model_folder), hook_name="blocks.7.hook_resid_pre")
    TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=5, metadata=place)).save_model(elsewhere)
    empty = tmp_path / "empty.txt"
    empty.write_text("")

    common = ["--model", str(tiny_model_folder), "--output", str(tmp_path / "out")]
    text = ["--dataset", str(tiny_dataset)]
    for arguments, message in (
        ([coders[0], str(transcoder), *text], "is a transcoder and binary an autoencoder"),
        ([coders[0], str(wide), *text], "wide: takes 32 to 32 dimensions, and the model has 16"),
        ([str(elsewhere), *text], "blocks.7.hook_resid_pre': the model has no such hook"),
        ([coders[0], "--dataset", str(empty)], "holds no text"),
        ([coders[0], *text, "--tokens", "0"], "tokens=0"),
        ([coders[0], *text, "--first_position", "255"], "first_position=255"),
        ([str(tmp_path / "nothing")], "is neither a folder nor a repository's id"),
    ):
        with pytest.raises(SystemExit) as status:
            main(["compare", *arguments, *common])
        assert status.value.code == 1
        assert message in capsys.readouterr().err


def test_one_activation_under_two_names_is_one_site(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    torch.manual_seed(0)
    coder = BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, k=5))
    for name, hook in (("leaving", HOOK), ("entering", "blocks.1.hook_resid_pre")):
        coder.cfg.metadata.model_name, coder.cfg.metadata.hook_name = str(tiny_model_folder), hook
        coder.save_model(tmp_path / name)
    output = tmp_path / "out"
    table = run_compare(
        [str(tmp_path / "leaving"), str(tmp_path / "entering")],
        config_of(tiny_model_folder, tiny_dataset, output),
    )
    assert table.count("blocks.") == 1
    one, other = json.loads((output / "metrics.json").read_text())["coders"]
    assert {one["hook_name"], other["hook_name"]} == {HOOK}
    for key in ("fvu", "cross_entropy_spliced", "kl_divergence", "dead"):
        assert one[key] == other[key]
    assert one["matches"]["entering"]["median_correlation"] == pytest.approx(1)


def test_transcoders_stand_in_a_table_of_each_site(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    for layer in (0, 1):
        hooks = {
            "hook_name": f"blocks.{layer}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
        }
        metadata = SAEMetadata(model_name=str(tiny_model_folder), **hooks)
        config = BinaryTranscoderConfig(
            d_in=WIDTH, d_sae=LATENTS, d_out=WIDTH, k=5, metadata=metadata
        )
        BinaryTranscoder(config).save_model(tmp_path / "coders" / f"layer{layer}")
    config = config_of(tiny_model_folder, tiny_dataset, tmp_path / "out")
    table = run_compare([str(tmp_path / "coders")], config)
    for layer in (0, 1):
        heading = f"blocks.{layer}.ln2.hook_normalized -> blocks.{layer}.hook_mlp_out"
        _, _, rest = table.partition(heading)
        assert rest.split("\n")[4].startswith(f"layer{layer}")


def test_a_plain_hugging_face_model_gives_the_same_figures(
    coders: list[str], tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    found: list[dict[str, Any]] = []
    for number in range(2):
        if number:
            path = tmp_path / "binary" / "cfg.json"
            config = json.loads(path.read_text())
            config["metadata"] |= {
                "hook_name": "model.layers.0",
                "model_class_name": "AutoModelForCausalLM",
            }
            path.write_text(json.dumps(config))
        output = tmp_path / f"out{number}"
        run_compare(coders[:1], config_of(tiny_model_folder, tiny_dataset, output, tokens=500))
        found += json.loads((output / "metrics.json").read_text())["coders"]
    bridge, plain = found
    for figure in ("fvu", "l0", "cross_entropy_spliced", "kl_divergence"):
        assert plain[figure]["value"] == pytest.approx(bridge[figure]["value"], rel=1e-4)
