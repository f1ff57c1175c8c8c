"""The second paper's claims: the search for a price, tokens given, shares, and saved runs."""

import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from safetensors.torch import save_file

from benchmarks.paper2 import cases, coders, document, profiles, results
from benchmarks.paper2.cases import FAMILIES, Case
from benchmarks.paper2.coders import CoderRun, ScoreRun, Settings
from benchmarks.paper2.profiles import ProfileRun, Reading
from benchmarks.reconstruction.activations import Split
from benchmarks.result_lines import ResultsFile
from sae_binary_ext.commands import ComsemConfig, ComsemScore, EntropyProfileConfig
from sae_binary_ext.commands.interpret.with_delphi import Embeddings
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import CONTEXT_RADIUS
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

WIDTH = 12


def line(case: Case, l0: float, seed: int = 0) -> dict[str, Any]:
    return CoderRun(case, seed).key() | {"train": {"l0": l0}}


def test_the_first_price_with_about_32_active_latents_is_chosen():
    tried = cases.searched("relu")
    assert len(tried) == 3
    assert results.chosen("relu", []) is None
    far = [line(tried[0], 90)]
    assert results.chosen("relu", far) is None
    # Lines of other seeds and families are none of the search.
    assert results.chosen("relu", [line(tried[0], 32, seed=1), *far]) is None
    assert results.chosen("gated", [line(tried[0], 32)]) is None
    assert results.chosen("relu", [*far, line(tried[1], 28)]) == tried[1]
    assert results.chosen("relu", [line(tried[0], 39), line(tried[1], 32)]) == tried[0]
    # If none is near, the nearest by its ratio is chosen, once all were tried.
    all_far = [line(tried[0], 90), line(tried[1], 16), line(tried[2], 0)]
    assert results.chosen("relu", all_far[:2]) is None
    assert results.chosen("relu", all_far) == tried[1]


def test_the_search_tries_prices_one_after_the_other():
    tried = cases.searched("gated")
    runs = results.search_runs([line(tried[0], 90)])
    assert [run.case for run in runs if run.case.family == "gated"] == [tried[1]]
    assert "random latents" not in {run.case.family for run in runs}
    found = [line(tried[0], 90), line(tried[1], 30)]
    assert "gated" not in {run.case.family for run in results.search_runs(found)}


def test_all_coders_have_equal_widths_and_the_price_of_their_case():
    for name, family in FAMILIES.items():
        if family.config is None:
            with pytest.raises(ValueError, match="random latents: has no coder"):
                cases.searched(name)[0].config()
            continue
        for case in cases.searched(name):
            config = case.config()
            assert (config.d_in, config.d_sae) == (576, 2304)
            assert getattr(config, family.price) == case.price


def test_values_are_compared_at_decoder_rows_of_norm_1():
    coder = StandardSAE(StandardSAEConfig(d_in=2, d_sae=3))
    coder.W_dec.data = torch.tensor([[3.0, 4.0], [0.0, 0.5], [1.0, 0.0]])
    codes = torch.tensor([[1.0, 4.0, 0.0], [0.0, 6.0, 1.0]])
    nothing = -torch.inf
    expected = [[5, 2, nothing], [nothing, 3, 1]]
    assert coders.by_value(coder, codes).tolist() == expected
    # Rescaled values are in standard deviations, so the scale of a latent does not matter.
    found = coders.by_prominence(coder, codes)
    scaled = coders.by_prominence(coder, codes * torch.tensor([2.0, 0.1, 1]))
    torch.testing.assert_close(found, scaled)
    assert found[0, :2].tolist() == pytest.approx([1, -1])


def test_active_latents_of_stock_coders_are_ranked_as_those_of_binary_coders():
    stock = StandardSAE(StandardSAEConfig(d_in=2, d_sae=3))
    codes = torch.tensor([[1.0, 4.0, 0.0], [0.0, 6.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 3.0]])
    binary = BinarySAE(BinarySAEConfig(d_in=2, d_sae=3, k=1))
    expected = coders.by_prominence(binary, (codes > 0).float())
    torch.testing.assert_close(coders.by_active_latents(stock, codes), expected)
    assert coders.by_active_latents(stock, codes)[0].argmax() == 0


def test_each_token_goes_to_the_latents_with_its_highest_scores():
    rows, context = 11, 4
    tokens = torch.arange(rows * context).reshape(rows, context)
    text = TextBatch(tokens, torch.full((rows,), context), list(range(rows)))
    places = tokens[:, 1:].flatten()
    scores = (places[:, None] % 3 == torch.arange(3)).float()
    config = ComsemConfig(latents=3, burstiest=1, shown=2, asked=60, device="cpu")
    found = coders.given_tokens(text, scores, scores, config)
    for latent in range(3):
        own = found.tokens_of(latent).own[:, CONTEXT_RADIUS]
        assert sorted(own.tolist()) == [place for place in places.tolist() if place % 3 == latent]


def score(fitting: float | None, others: float | None) -> ComsemScore:
    return ComsemScore("it", 0, 9, 0.0, fitting, others)


def test_marks_tell_which_latents_count():
    scores = [score(None, None), score(0.5, 0.1), score(0.75, 0.5), score(1.0, 0.25)]
    found = coders.figures_of(scores, 0.75)
    assert found["marks"] == "-.it"
    assert found["fitting"] == pytest.approx(0.75)
    assert found["others_fitting"] == pytest.approx(0.85 / 3)
    assert coders.figures_of(scores[:1], 0.75)["fitting"] is None
    assert document.share(found["marks"], "interpretable").value == 0.5
    assert document.share(found["marks"], "told apart").value == 0.25


def test_differences_are_of_seeds_that_both_coders_have():
    one = {0: {"marks": "tt.."}, 1: {"marks": "tttt"}}
    other = {0: {"marks": "ii.-"}, 2: {"marks": "tttt"}}
    found = document.difference(one, other, "told apart")
    assert found is not None
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    same = document.difference(one, other, "interpretable")
    assert same is not None
    assert same.value == 0
    assert document.difference(one, {2: {"marks": "tttt"}}, "told apart") is None


def score_line(family: str, giving: str, marks: str) -> dict[str, Any]:
    case = cases.searched(family)[0]
    return ScoreRun(case, 0, giving, "judge").key() | {
        "marks": marks,
        "fitting": 0.5,
        "others_fitting": 0.5,
    }


def test_binary_is_compared_with_the_stock_coder_that_has_most():
    lines = [
        line(cases.searched("binary")[0], 32),
        line(cases.searched("topk")[0], 32),
        line(cases.searched("relu")[0], 32),
        score_line("binary", "burstiness", "tt.."),
        score_line("topk", "rescaled", "iii."),
        score_line("relu", "values", "t..."),
    ]
    found = document.scored("judge", lines)
    assert document.best_stock(found, "interpretable") == ("topk", "rescaled")
    assert document.best_stock(found, "told apart") == ("relu", "values")
    text = document.differences_table(lines)
    assert "| interpretable | binary | topk, rescaled (the best stock coder) | -25.0%" in text
    assert "| told apart | binary | relu, values (the best stock coder) | +25.0%" in text
    # The row of relu's values is not written a second time.
    assert "| told apart | binary | relu, values |" not in text
    assert "| interpretable | binary | relu, values |" in text
    assert "binary | burstiness | 1 | 4 | 4 | 50.0%" in document.scores_table(lines)


def test_the_interval_over_seeds_is_student_s():
    found = document.over_seeds([1.0, 2.0, 3.0])
    # The quantile of t with two degrees of freedom is 4.303.
    assert (found.value, found.high) == (2, pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3))
    assert math.isnan(document.over_seeds([1.0]).low)


def test_the_fall_is_from_two_examples_to_fifteen():
    def profile(seed: int, bits: dict[int, float]) -> dict[str, Any]:
        points = [
            {"at": at, "fvu": 0.5, "independent": value, "tree": value, "blocks": value}
            for at, value in bits.items()
        ]
        return ProfileRun(Reading("in_context"), 18, seed).key() | {"points": points}

    lines = [profile(0, {0: 5, 2: 100, 15: 90}), profile(1, {0: 5, 2: 80, 15: 76})]
    assert document.fall_cells(lines, "independent")[0] == "bits, independent"
    assert document.fall_cells(lines, "independent")[1].startswith("+7.0 [")
    assert document.fall_cells(lines, "independent")[2].startswith("7.5% [")
    assert "| 18 | training | 2 | bits, independent | +7.0 [" in document.falls_table(lines)
    assert "examples 0 | examples 2" in document.in_context_table(lines)


class OfLetters(Embeddings):
    """An embedding that is a hash of the marked token, so that equal tokens are near."""

    def __init__(self, _: Any = None) -> None:
        self.forgotten = 0

    def encode(self, texts: list[str]) -> Any:
        seeds = [zlib.crc32(each.split("<<")[1].split(">>")[0].encode()) for each in texts]
        return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds])

    def forget(self) -> None:
        self.forgotten += 1


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A small world: 12 token ids, whose activations are noisy directions of their own."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(WIDTH) * 4

    def states(tokens: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tokens.numel(), WIDTH, generator=generator) * 0.3
        return (directions[tokens.flatten() % WIDTH] + noise).half()

    rows = torch.randint(WIDTH, (30, 9), generator=generator)
    rest = torch.randint(WIDTH, (600,), generator=generator)
    split = Split(states(rest), *(states(rows[:, 1:]) for _ in range(3)))
    text = TextBatch(rows, torch.full((30,), 9), list(range(30)))
    monkeypatch.setattr(cases, "WIDTH", WIDTH)
    monkeypatch.setattr(cases, "BATCH", 64)
    monkeypatch.setattr(coders, "load", lambda *_: split)
    monkeypatch.setattr(coders, "held_out_text", lambda _: (text, Words()))
    monkeypatch.setattr(coders, "open_comsem_judge", OfLetters)
    monkeypatch.setattr(results, "RESULTS", ResultsFile(tmp_path / "results.jsonl"))
    return Settings(tmp_path)


class Words:
    """A tokenizer of which only decode is used."""

    def decode(self, tokens: list[int]) -> str:
        return f" w{tokens[0]}"


def test_a_coder_is_trained_once_and_its_latents_are_scored(settings: Settings):
    case = Case("binary", 2)
    runs = [CoderRun(case, seed) for seed in (0, 1)]
    found = runs[0].make(settings)
    results.RESULTS.append(found)
    assert results.missing(runs) == runs[1:]
    assert json.loads(json.dumps(found)) == results.RESULTS.read()[0]
    assert found["held_out"]["l0"] <= 2
    saved = next((settings.folder / "coders").iterdir())
    written = (saved / "cfg.json").stat().st_mtime_ns
    scored = ScoreRun(case, 0, "burstiness", "judge").make(settings)
    assert (saved / "cfg.json").stat().st_mtime_ns == written
    assert len(scored["marks"]) == 4 * WIDTH
    assert {"i", "t"} & set(scored["marks"])
    assert scored["fitting"] > scored["others_fitting"]


@pytest.mark.parametrize(
    ("family", "giving"), [("random weights", "rescaled"), ("random latents", "random")]
)
def test_random_coders_need_no_training(settings: Settings, family: str, giving: str):
    case = Case(family, 2)
    first, again = (ScoreRun(case, 0, giving, "judge").make(settings) for _ in range(2))
    assert first == again
    other = ScoreRun(case, 1, giving, "judge").make(settings)
    assert other["marks"] != first["marks"]


@pytest.mark.usefixtures("settings")
def test_random_weights_follow_the_seed():
    runs = [CoderRun(Case("random weights", 2), seed) for seed in (0, 0, 1)]
    first, again, other = (coders.untrained(run).W_enc for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_profiles_are_trained_on_saved_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = EntropyProfileConfig(
        along="positions", latents=16, training_states=1024, states=100, device="cpu"
    )
    monkeypatch.setattr(Reading, "config", lambda *_: small)
    reading = Reading("positions")
    states = {f"{layer} {at}": torch.randn(100, 8).half() for layer in (6, 18) for at in (16, 2)}
    save_file(states, reading.path(tmp_path))
    reading.make(Settings(tmp_path))  # the states have a file, so no model is read
    assert set(reading.states(tmp_path)) == {(6, 2), (6, 16), (18, 2), (18, 16)}
    runs = [ProfileRun(reading, 6, seed) for seed in (0, 1)]
    first, second = (run.make(Settings(tmp_path)) for run in runs)
    assert [point["at"] for point in first["points"]] == [2, 16]
    assert {point["states"] for point in first["points"]} == {20}
    # A seed changes the weights, not the states.
    assert first["points"] != second["points"]
    assert results.line_of(runs[1], [first, second]) == second
    assert json.loads(json.dumps(first)) == first


def test_prompts_and_positions_are_read_with_their_own_settings(tmp_path: Path):
    prompts = Reading("in_context", 3).config(tmp_path)
    assert (prompts.prompts, prompts.seed, prompts.states) == ("in_context", 3, 3120)
    assert prompts.tokens // prompts.context_size == 3120
    rows = Reading("positions").config(tmp_path)
    assert (rows.prompts, rows.context_size, rows.states) == ("text", 33, 15_200)
    layers = {run.layer for run in results.profile_runs()}
    assert layers == set(profiles.LAYERS) == set(prompts.layers)
    assert len(set(results.profile_runs())) == len(results.profile_runs())


def test_runs_with_the_same_states_stand_together():
    readings = [reading for reading, _ in itertools.groupby(results.profile_runs(), by_reading)]
    assert len(readings) == len(set(readings)) == 6
    assert readings[:2] == [Reading("in_context"), Reading("positions")]


def by_reading(run: ProfileRun) -> Reading:
    return run.reading
