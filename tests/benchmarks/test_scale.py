"""The comparison by training tokens: streamed activations, and coders at equal bits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.reconstruction.activations import Site
from benchmarks.result_lines import ResultsFile
from benchmarks.scale import activations, cases, document, results
from benchmarks.scale.running import Run, folder_of, make_again
from sae_binary_ext.checkpoints import load_coder

WIDTH, VOCABULARY = 32, 50
SITES = [Site("autoencoder", 1), Site("autoencoder", 2), Site("transcoder", 1)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and rows of random text."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    parts = {"train": 6, "choosing": 2, "held_out": 2}
    rows = {part: torch.randint(VOCABULARY, (number, 256)).int() for part, number in parts.items()}
    save_file(rows, tmp_path / "rows.safetensors")
    monkeypatch.setattr(activations, "WIDTH", WIDTH)
    monkeypatch.setattr(activations, "ROWS_PER_PART", 2)
    return tmp_path


def test_streamed_activations_are_those_of_the_model(folder: Path):
    tokens = 3 * activations.TOKENS_OF_ROW
    activations.compute_missing(folder, dict.fromkeys(SITES, tokens))
    rows = activations.read_rows(folder).train[:4].long()
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    with torch.no_grad():
        hidden = model(rows, output_hidden_states=True).hidden_states
    for site in SITES[:2]:
        found = activations.load(folder, site, tokens).train
        expected = hidden[site.layer][:, 1:].flatten(0, 1)[:tokens]
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), expected.float(), atol=0.02, rtol=0.02)
    pairs = activations.load(folder, SITES[2], tokens).train
    with torch.no_grad():
        output = model.model.layers[1].mlp(pairs[:, :WIDTH].bfloat16())
    torch.testing.assert_close(pairs[:, WIDTH:].float(), output.float(), atol=0.02, rtol=0.02)


def test_two_commands_may_compute_activations_in_one_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    own, other = SITES[:2]
    tokens = 2 * activations.TOKENS_OF_ROW
    watch = activations.watch

    def meanwhile(model: Any, site: Site, keep: Any) -> None:
        monkeypatch.setattr(activations, "watch", watch)
        activations.compute_missing(folder, {other: tokens})
        watch(model, site, keep)

    monkeypatch.setattr(activations, "watch", meanwhile)
    activations.compute_missing(folder, {own: tokens})
    for site in (own, other):
        assert len(activations.load(folder, site, tokens).train) == tokens


def test_a_stopped_run_goes_on_and_keeps_what_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch):
    site = SITES[0]
    activations.compute_missing(folder, {site: 2 * activations.TOKENS_OF_ROW})
    with pytest.raises(ValueError, match=r"training_tokens=1000.* has 510 "):
        activations.load(folder, site, 1000)
    before = activations.load(folder, site, 500).train.clone()
    kept: list[int] = []
    stock = activations.watch

    def counted(model: Any, site: Site, keep: Any) -> None:
        stock(model, site, keep)
        stock(model, site, lambda found: kept.append(len(found)))

    monkeypatch.setattr(activations, "watch", counted)
    activations.compute_missing(folder, {site: 4 * activations.TOKENS_OF_ROW})
    assert kept == [
        2 * activations.TOKENS_OF_ROW
    ]  # two rows more, and none of those that were computed
    assert torch.equal(activations.load(folder, site, 1000).train[:500], before)


@pytest.mark.parametrize("site", SITES[1:], ids=str)
def test_a_coder_is_trained_again_if_its_file_is_gone(folder: Path, site: Site):
    tokens = 6 * activations.TOKENS_OF_ROW
    activations.compute_missing(folder, {site: tokens})
    case = replace(cases.new_case(site.kind, "topk", 4, lr=1e-3), latents=48)
    saved = make_again(folder, Run(site, case, tokens, 0))
    coder = load_coder(saved)
    found = coder.cfg.metadata
    assert (found.hook_name, found.hook_name_out or found.hook_name) == site.hooks
    weights = coder.state_dict()
    before = (saved / "sae_weights.safetensors").stat().st_mtime_ns
    assert make_again(folder, Run(site, case, tokens, 0)) == saved
    assert (saved / "sae_weights.safetensors").stat().st_mtime_ns == before
    shutil.rmtree(saved)
    again = load_coder(make_again(folder, Run(site, case, tokens, 0))).state_dict()
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor)


def test_coders_of_different_runs_have_folders_of_their_own(tmp_path: Path):
    runs = [run for kind in cases.SEARCHED for run in cases.search_runs(kind)]
    runs += [run for place in cases.PRICES for run in cases.tuned_runs(place)]
    runs += cases.default_runs()
    different = {json.dumps(run.key(), sort_keys=True) for run in runs}
    assert len({folder_of(tmp_path, run) for run in runs}) == len(different)


def line(family: str, bits: float, fvu: float, **changes: Any) -> dict[str, Any]:
    figures = {"bits": bits, "mdl_bits": bits / 2, "fvu": fvu}
    settings = {"family": family, "lr": 1e-3, "bits": bits}
    return {"case": family, "tokens": 9, "held_out": figures, "settings": settings, **changes}


def line_of(run: Run) -> dict[str, Any]:
    """What the file of results tells of a run, without its figures."""
    return json.loads(json.dumps(run.key()))


def fvu_of(line: dict[str, Any]) -> float:
    return line["held_out"]["fvu"]


def test_stock_coders_are_compared_between_their_points():
    stock = [[line("topk", 100, 0.4)], [line("topk", 400, 0.1)], [line("jumprelu", 200, 0.3)]]
    # Halfway in the logarithm of bits is halfway in the logarithm of FVU.
    assert document.best_stock(stock, "bits", 200, fvu_of) == pytest.approx(0.2)
    assert document.best_stock(stock, "mdl_bits", 100, fvu_of) == pytest.approx(0.2)
    assert document.best_stock(stock, "bits", 401, fvu_of) is None
    # If all stock coders have more bits, the one with the fewest stands for them.
    assert document.best_stock(stock, "bits", 50, fvu_of) == pytest.approx(0.4)
    better = [*stock, [line("batchtopk", 150, 0.1)], [line("batchtopk", 250, 0.1)]]
    assert document.best_stock(better, "bits", 200, fvu_of) == pytest.approx(0.1)


def test_the_loss_that_a_coder_leaves_is_compared_too():
    stock = [line("topk", 100, 0.4, recovered=0.6), line("topk", 400, 0.1, recovered=0.9)]
    binary = line("binary", 200, 0.1, recovered=0.9)
    binary["held_out"]["mdl_bits"] = 200
    row = document.ratio_row([binary], [[each] for each in stock])
    assert row is not None
    # At 200 bits by MDL's count is the stock coder of 400 bits by the other.
    fvu = ["0.1000", "0.2000", "0.50", "0.1000", "1.00"]
    lost = ["10.00%", "20.00%", "0.50", "10.00%", "1.00"]
    assert row.strip("| ").split(" | ") == ["9", "binary", "200", *fvu, *lost]


def test_coders_with_defaults_are_beside_those_with_the_best_settings():
    own, other = cases.default_runs()[:2]
    tuned = cases.tuned_cases(cases.Place(cases.AUTOENCODER, 9), own.tokens)
    best = Run(own.site, next(case for case in tuned if case.name == "binary, 64"), own.tokens, 0)
    assert list(own.case.fields) == ["k"]

    def result(run: Run, bits: float, fvu: float) -> dict[str, Any]:
        figures = {"bits": bits, "fvu": fvu, "dead": 3, "dense": 5}
        return {"case": run.case.name, **line_of(run), "held_out": figures}

    # Four times the bits count like 2 to the power of 0.9 times the FVU.
    lines = [result(best, 100, 0.2), result(own, 400, 0.1), result(other, 100, 0.1)]
    (row,) = (row for row in document.defaults_table(lines).splitlines() if row[2:3] == "3")
    assert row == "| 300,000 | binary, 64 | 0.1000 | 400 | 3 | 5 | 0.2000 | 100 | 3 | 5 | 0.93 |"


def test_the_page_has_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page, plot = document.DOCUMENT, document.PLOT
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    monkeypatch.setattr(document, "DOCUMENT", copy)
    monkeypatch.setattr(document, "PLOT", tmp_path / plot.name)
    document.write_document(results.RESULTS.read())
    assert copy.read_text() == page.read_text()
    assert (tmp_path / plot.name).is_file()


def test_runs_are_known_by_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "RESULTS", ResultsFile(tmp_path / "results.jsonl"))
    runs = [
        Run(Site("autoencoder", 9), cases.new_case(cases.AUTOENCODER, "topk", 16, lr=lr), tokens, 0)
        for lr in (1e-3, 2e-3)
        for tokens in (10, 20)
    ]
    results.RESULTS.append({"case": "it", **runs[1].key()})
    assert results.missing(runs) == [runs[0], *runs[2:]]


@pytest.mark.parametrize("tokens", [cases.LONG_TOKENS - 1, cases.LONG_TOKENS])
def test_long_runs_have_fields_of_their_own(tokens: int):
    for case in cases.tuned_cases(cases.Place(cases.AUTOENCODER, 20), tokens):
        own = cases.LONG_FIELDS.get(case.family, {})
        has_them = own.items() <= case.fields.items()
        assert has_them == (not own or tokens == cases.LONG_TOKENS), case.name


@pytest.mark.parametrize("kind", cases.SEARCHED)
def test_a_run_at_another_site_is_none_of_the_search(kind: str):
    found = cases.search_runs(kind)[0]
    assert results.is_of_search(line_of(found), kind)
    for other in (replace(found, site=Site("transcoder", 20)), replace(found, seed=1)):
        assert not results.is_of_search(line_of(other), kind)


def test_transcoders_with_a_skip_connection_are_a_place_of_their_own():
    plain, skip = (cases.Place(kind, 9) for kind in (cases.TRANSCODER, cases.SKIP))
    assert plain.site == skip.site
    for own, other in ((plain, skip), (skip, plain)):
        for run in cases.tuned_runs(own):
            assert results.is_tuned(line_of(run), own)
            assert not results.is_tuned(line_of(run), other)


@pytest.mark.parametrize("kind", cases.SEARCHED)
def test_the_chosen_settings_are_the_best_of_the_search(kind: str):
    of_search = [line for line in results.RESULTS.read() if results.is_of_search(line, kind)]
    for family, chosen in cases.TUNED[kind].items():
        lines = [found for found in of_search if found["settings"]["family"] == family]
        assert len(lines) == len(cases.SEARCHED[kind]), family
        best = min(lines, key=lambda line: results.score(line, kind))["settings"]
        assert {name: best[name] for name in chosen} == chosen


def test_results_are_of_the_cases_that_stand_in_the_code():
    """A line whose settings no case has any more would stay out of the tables unseen."""
    runs = [run for kind in cases.SEARCHED for run in cases.search_runs(kind)]
    runs += [run for place in cases.PRICES for run in cases.tuned_runs(place)]
    runs += cases.default_runs()
    known = [json.dumps(run.key(), sort_keys=True) for run in runs]
    for found in results.RESULTS.read():
        key = {name: found[name] for name in ("site", "tokens", "seed", "settings")}
        assert json.dumps(key, sort_keys=True) in known, found["case"]
