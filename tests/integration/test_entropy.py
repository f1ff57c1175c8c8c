"""Tests of `sae-binary entropy`, `entropy-check` and `entropy-profile`, up to their files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_binary_ext.cli import main
from sae_binary_ext.commands.entropy_check.config import EntropyCheckConfig
from sae_binary_ext.commands.entropy_check.entropy_check_run import check
from sae_binary_ext.commands.entropy_check.known_states import correlated, fair
from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig
from sae_binary_ext.measure.hidden_states import states_of_positions, states_of_prompts
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import open_coders, open_model_alone, read_text
from sae_binary_ext.saelens.splice import resolve_hook
from sae_binary_ext.settings import ReadingConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders

pytestmark = pytest.mark.integration
TOKENS = 2000


def results_of(command: str, output: Path) -> dict[str, Any]:
    assert (output / f"{command}.html").is_file()
    return json.loads((output / f"{command}.json").read_text())["results"]


@pytest.fixture(scope="module")
def text(tiny_model_folder: Path, tiny_dataset: Path) -> list[str]:
    return [
        *("--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)),
        *("--context_size", str(CONTEXT), "--tokens", str(TOKENS)),
    ]


def test_entropies_are_those_of_the_codes_of_the_text(
    text: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folders = save_coders(tmp_path, tiny_model_folder)
    output = tmp_path / "out"
    assert main(["entropy", *folders, *text, "--hook", HOOK, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    found = results_of("entropy", output)["coders"]
    assert len(found) == 4

    config = ReadingConfig(
        str(tiny_model_folder), str(tiny_dataset), HOOK, tokens=TOKENS, context_size=CONTEXT
    )
    opened = open_coders(folders, config, tmp_path / "again")
    (hooks,) = opened.hooks.values()
    inputs = torch.cat([batch.activations(hooks)[0] for batch in read_text(opened, config)])
    for coder, candidate in zip(found, opened.candidates, strict=True):
        metrics = measure(candidate.coder, inputs)
        assert coder["name"] == candidate.name
        assert coder["tokens"] == len(inputs)
        assert coder["independent_bits"]["value"] == pytest.approx(metrics.entropy_bits, rel=1e-9)
        assert coder["fvu"]["value"] == pytest.approx(metrics.fvu, rel=1e-4)
        assert coder["codes"] == ("0/1" if "binary" in candidate.name else "which are active")
        assert coder["held_out"]["tree_bits"]["value"] < coder["independent_bits"]["value"]
        assert f"{metrics.entropy_bits:.1f}" in printed


def test_tokens_of_large_norms_are_left_out_and_counted(
    text: list[str], tiny_model_folder: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, tiny_model_folder)[:1]
    tokens, left_out = [], []
    for limit in ("inf", "1.05"):
        arguments = [*text, "--hook", HOOK, "--norm_limit", limit, "--output", str(tmp_path)]
        assert main(["entropy", *folders, *arguments]) == 0
        document = json.loads((tmp_path / "entropy.json").read_text())
        tokens.append(document["results"]["coders"][0]["tokens"])
        left_out.append(int(document["run"]["tokens_left_out"]))
    assert left_out[0] == 0
    assert 0 < left_out[1] < tokens[0]
    assert tokens[1] + left_out[1] == tokens[0]


def test_sources_of_all_kinds_are_in_the_files(tmp_path: Path):
    arguments = ["--directions", "4", "--variant_directions", "4", "--dimensions", "16"]
    arguments += ["--training_states", "2048", "--measured_states", "500", "--starts", "1"]
    assert main(["entropy-check", *arguments, "--output", str(tmp_path)]) == 0
    found = {each["states"]: each for each in results_of("entropy-check", tmp_path)["sources"]}
    assert list(found) == ["fair", "unequal", "pairs", "noise"]
    assert found["fair"]["truth_bits"] == found["noise"]["truth_bits"] == 4
    rates = [0.05, 0.2, 0.35, 0.5]
    bits = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in rates]
    assert found["unequal"]["truth_bits"] == pytest.approx(sum(bits))
    # The two sources of a pair are equal with probability 1/2 + asin(0.8) / pi.
    assert found["pairs"]["truth_bits"] == pytest.approx(3.463, abs=1e-3)


def test_known_entropies_are_found(tmp_path: Path):
    config = EntropyCheckConfig(
        tmp_path, [4], [64], [4], training_states=100_000, measured_states=5000, starts=2
    )
    found = check(fair(8, 64), config)
    # If latents that repeat others were not removed, the estimate would be three times the truth.
    assert found.trained > 16
    assert found.independent == pytest.approx(8, rel=0.05)
    assert found.found.mcc > 0.99
    found = check(correlated(4, 64), config)
    # The independent estimate counts the information shared by a pair twice.
    assert 0.98 * found.states.truth < found.bounds.tree.value < found.independent - 0.2


@pytest.mark.parametrize("directions", ["1", "9"])
def test_directions_that_cannot_be_told_apart_are_refused(
    directions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--directions", directions, "--dimensions", "8", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["entropy-check", *arguments])
    assert f"directions=[{directions}]" in capsys.readouterr().err


PROFILE = ["--latents", "32", "--training_states", "4000", "--states", "200"]


def test_a_profile_has_a_point_a_layer(text: list[str], tmp_path: Path):
    arguments = [*text, *PROFILE, "--layers", "0", "1", "--output", str(tmp_path)]
    assert main(["entropy-profile", *arguments]) == 0
    points = results_of("entropy-profile", tmp_path)["points"]
    assert [(point["layer"], point["at"], point["states"]) for point in points] == [
        (0, "all", 40),
        (1, "all", 40),
    ]
    assert all(0 < point["independent_bits"] <= 32 for point in points)


def test_a_profile_has_a_point_a_position_of_each_layer(
    text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [
        *text,
        *PROFILE,
        "--layers",
        "1",
        "--along",
        "positions",
        "--output",
        str(tmp_path),
    ]
    assert main(["entropy-profile", *arguments]) == 0
    results = results_of("entropy-profile", tmp_path)
    assert [point["at"] for point in results["points"]] == [1, 2, 4, 8]
    assert results["saturation"]["1"] in (1, 2, 4, 8)


@pytest.mark.parametrize(("prompts", "layer", "limit"), [("text", 1, 1.2), ("in_context", 2, 1.4)])
def test_rows_with_a_large_norm_at_a_position_are_left_out(
    prompts: str,
    layer: int,
    limit: float,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    smollm2_folder: Path,
    tmp_path: Path,
):
    # The prompts need SmolLM2: the tiny model's tokenizer knows none of their words.
    sources = (tiny_model_folder, tiny_dataset) if prompts == "text" else (smollm2_folder, None)
    model, dataset = (None if source is None else str(source) for source in sources)
    found = []
    for norm_limit in (math.inf, limit):
        config = EntropyProfileConfig(
            model, dataset, tokens=TOKENS, context_size=CONTEXT, norm_limit=norm_limit
        )
        opened = open_model_alone(config, tmp_path)
        hooks = {layer: resolve_hook(opened.model, "layers", f"blocks.{layer}.hook_resid_pre")}
        if prompts == "text":
            states = states_of_positions(opened, config, hooks, TOKENS)
        else:
            states = states_of_prompts(opened, config, hooks, TOKENS, seed=0)
        found.append(torch.stack(list(states.values()), dim=1).float())
    # Rows are left out whole, so that all positions keep the same number of states.
    kept = (found[0][:, None] == found[1]).flatten(2).all(-1).any(1)
    assert 0 < kept.sum() == len(found[1]) < len(found[0])
    assert found[1].norm(dim=-1).max() < found[0].norm(dim=-1).max()


def test_prompts_have_a_point_for_each_number_of_examples(smollm2_folder: Path, tmp_path: Path):
    arguments = ["--model", str(smollm2_folder), "--along", "positions", "--prompts", "in_context"]
    arguments += [*PROFILE, "--layers", "1", "--tokens", "3200", "--output", str(tmp_path)]
    assert main(["entropy-profile", *arguments]) == 0
    points = results_of("entropy-profile", tmp_path)["points"]
    assert [point["at"] for point in points] == [0, 1, 2, 4, 8, 15]
    assert {point["states"] for point in points} == {10}


def test_states_that_are_all_the_same_are_refused(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # The tiny model's tokeniser knows none of these words and gives them all the same token.
    words = [f"{a}{b}{c}word" for a in "abc" for b in "def" for c in "ghi"]
    Dataset.from_dict({"text": [" ".join(words)]}).to_parquet(tmp_path / "words.parquet")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tmp_path / "words.parquet")]
    arguments += [*PROFILE, "--layers", "1", "--along", "positions", "--prompts", "in_context"]
    with pytest.raises(SystemExit):
        main(["entropy-profile", *arguments, "--tokens", "3200", "--output", str(tmp_path / "out")])
    assert "layer 1, at 0: all hidden states are the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--along", "heads"], "along='heads'"),
        (["--prompts", "in_context"], "along='positions'"),
        (["--states", "3"], "states=3"),
        (["--layers", "7"], "layers='blocks.7.hook_resid_pre'"),
    ],
)
def test_what_a_profile_cannot_do_is_refused(
    arguments: list[str],
    message: str,
    text: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit):
        main(["entropy-profile", *text, *arguments, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
