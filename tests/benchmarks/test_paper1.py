"""Coders of the first paper's grid are those that sparsify trains with its own model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sparsify import TrainConfig, Trainer
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel

from benchmarks.paper1 import cases, document, results, running, training
from benchmarks.paper1.cases import Case
from benchmarks.result_lines import ResultsFile
from sae_binary_ext.checkpoints import load_coder
from tests.small_models import VOCABULARY

ROWS = 40


@pytest.fixture(autouse=True)
def few_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "LATENTS", 64)
    monkeypatch.setattr(training, "ROW", 12)


@pytest.fixture
def model(tiny_llama: Path) -> LlamaModel:
    return LlamaModel.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def case(**changes: Any) -> Case:
    fields = {"layer": 1, "form": "autoencoder", "kind": "topk", "k": 4, "seed": 0, "factor": 1.0}
    return Case(**{**fields, **changes})


def pairs_of(model: LlamaModel, tokens: Tensor) -> Tensor:
    """Inputs and outputs of the MLP of layer 1, side by side, float32 [tokens, 2 * width]."""
    found: list[Tensor] = []
    handle = model.layers[1].mlp.register_forward_hook(
        lambda _, inputs, output: found.append(torch.cat([inputs[0], output], -1).flatten(0, 1))
    )
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_coder_is_that_of_a_plain_run_of_sparsify(
    kind: str, form: str, model: LlamaModel, tmp_path: Path
):
    tokens = torch.randint(2, VOCABULARY, (ROWS, training.ROW))
    own = case(kind=kind, form=form)
    pairs = pairs_of(model, tokens)
    cached = training.train(own, pairs, tmp_path / "cached")
    config = own.config()
    settings: dict[str, Any] = {
        "batch_size": training.ROWS_PER_BATCH,
        "hookpoints": ["layers.1.mlp"],
        "log_to_wandb": False,
        "save_dir": str(tmp_path),
        "run_name": "plain",
    }
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    preset = getattr(config, "train_config", None)
    Trainer(preset(**settings) if preset else TrainConfig(config, **settings), dataset, model).fit()
    plain = load_coder(tmp_path / "plain", "layers.1.mlp")
    inputs, targets = running.pair_of(pairs, form)
    figures = [running.figures_of(coder, inputs, targets) for coder in (cached, plain)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert 0 < figures[0]["l0"] <= 4
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_the_factor_and_the_seed_reach_the_trainer(model: LlamaModel, tmp_path: Path):
    pairs = pairs_of(model, torch.randint(2, VOCABULARY, (ROWS, training.ROW)))
    first, faster, other = (
        training.train(each, pairs, tmp_path / str(number)).W_enc
        for number, each in enumerate([case(), case(factor=2.0), case(seed=1)])
    )
    difference = (first - other).abs().mean()
    assert 0 < (first - faster).abs().mean() < 0.9 * difference


def test_an_autoencoder_reads_the_output_and_a_transcoder_the_input():
    pairs = torch.tensor([[1.0, 2.0]])
    assert [each.item() for each in running.pair_of(pairs, "autoencoder")] == [2, 2]
    assert [each.item() for each in running.pair_of(pairs, "transcoder")] == [1, 2]


class Zeros:
    """A coder whose output is zero."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_predictions_are_the_models_own_with_the_output_in_place(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "model").symlink_to(tiny_llama)
    rows = torch.randint(2, VOCABULARY, (6, 12))
    whole = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    # Rows that the model writes itself: most of its guesses of the next token are right.
    rows = whole.generate(rows[:, :3], min_new_tokens=9, max_new_tokens=9, do_sample=False)
    with torch.no_grad():
        logits = whole(rows).logits[:, 1:-1]
    hook = "blocks.1.hook_mlp_out"
    in_model = running.InModel(tmp_path, (hook, hook), rows)
    same, zeros = in_model.predictions(nn.Identity()), in_model.predictions(Zeros())
    assert same["accuracy"] == pytest.approx((logits.argmax(-1) == rows[:, 2:]).float().mean())
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 2:].flatten())
    assert same["cross_entropy"] == pytest.approx(expected.item(), rel=1e-4)
    assert same["cross_entropy"] == same["clean_cross_entropy"] != zeros["cross_entropy"]
    assert (same["cross_entropy_recovered"], zeros["cross_entropy_recovered"]) == (1, 0)


def line(own: Case, fvu: float, bits: float = 100.0) -> dict[str, Any]:
    figures = {"fvu": fvu, "bits": bits, "mdl_bits": bits / 2}
    shared = {"l0": 4.0, "dead": 0, "dense": 0, "ultra_high": 0}
    in_model = {"cross_entropy_recovered": 0.9, "accuracy": 0.4}
    both = {"choosing": figures | shared, "held_out": figures | shared}
    return {**own.key(), **both, "in_model": in_model}


def test_a_learning_rate_is_chosen_by_the_rows_for_choosing_once_all_were_tried():
    tried = cases.searched("topk", "transcoder")
    lines = [line(each, 0.5) for each in tried]
    lines[2]["choosing"] = lines[2]["choosing"] | {"fvu": 0.4}
    lines[1]["held_out"] = lines[1]["held_out"] | {"fvu": 0.1}
    assert results.tuned_factor("topk", "transcoder", lines) == tried[2].factor
    assert results.tuned_factor("topk", "transcoder", lines[:-1]) is None
    assert results.tuned_factor("topk", "autoencoder", lines) is None
    made = results.grid([9, 18], lines)
    assert len(made) == 2 * len(cases.KS) * len(cases.SEEDS)
    assert {each.factor for each in made} == {tried[2].factor}
    assert [each.seed for each in made[:8]] == [0] * 8


def test_the_fvu_is_compared_with_stock_topk_at_as_many_bits():
    groups = {("topk", k): [line(case(k=k), 2.0 / k, bits=10.0 * k)] for k in (16, 32, 64)}
    own = [line(case(kind="topk_binary", k=64), 0.05, bits=320.0)]
    assert document.ratio_at_bits(own, groups, "bits") == "0.80"
    assert document.ratio_at_bits(own, groups, "mdl_bits") == "0.80"
    between = [line(case(kind="topk_binary", k=64), 0.05, bits=10 * 32 * 2**0.5)]
    assert document.ratio_at_bits(between, groups, "bits") == f"{0.05 / (2 / 32 / 2**0.5):.2f}"
    beyond = [line(case(kind="topk_binary", k=64), 0.05, bits=700.0)]
    assert document.ratio_at_bits(beyond, groups, "bits") == "none"
    assert document.ratio_at_bits(groups["topk", 32], groups, "bits") == "none"


def test_results_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "RESULTS", ResultsFile(tmp_path / "results.jsonl"))
    wanted = [case(seed=seed) for seed in (0, 1)]
    results.RESULTS.append(line(wanted[0], 0.5))
    assert results.missing(wanted) == wanted[1:]
    assert json.loads((tmp_path / "results.jsonl").read_text()) == results.RESULTS.read()[0]
