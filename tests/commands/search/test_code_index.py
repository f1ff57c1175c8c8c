"""Answers of an index equal a dense scan of the codes, for each scope and across segments."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_binary_ext.commands import CodeIndex
from sae_binary_ext.commands.search.bitmaps import numbers_of
from tests.indexes import write_index

LATENTS, INDEXES = 7, 20
Dense = NDArray[np.bool_]
# Codes [tokens, latents], which tokens have one, and documents.
Text = tuple[Dense, Dense, NDArray[np.int64]]
# A query's text, and the same query on bool [latents, units].
Both = tuple[str, Callable[[Dense], Dense]]


def combined(parts: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    def negated(part: Both) -> Both:
        return f"!({part[0]})", lambda dense: ~part[1](dense)

    def joined(sign: str, join: Any) -> Callable[[list[Both]], Both]:
        return lambda found: (
            sign.join(f"({text})" for text, _ in found),
            lambda dense: join([scan(dense) for _, scan in found], axis=0),
        )

    def at_least(drawn: tuple[list[Both], int]) -> Both:
        found, least = drawn[0], min(drawn[1], len(drawn[0]))
        text = f"at least {least} of ({', '.join(text for text, _ in found)})"
        return text, lambda dense: np.sum([scan(dense) for _, scan in found], axis=0) >= least

    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        parts.map(negated),
        several.map(joined(" & ", np.all)),
        several.map(joined(" | ", np.any)),
        st.tuples(several, st.integers(1, 3)).map(at_least),
    )


QUERIES = st.recursive(
    st.integers(0, LATENTS - 1).map(lambda latent: (str(latent), lambda dense: dense[latent])),
    combined,
    max_leaves=6,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[CodeIndex, Text]]:
    """Indexes of random codes, and the codes."""
    folders = [tmp_path_factory.mktemp("drawn") for _ in range(INDEXES)]
    texts = [write_drawn(seed, folder) for seed, folder in enumerate(folders)]
    return [(CodeIndex.open(each), text) for each, text in zip(folders, texts, strict=True)]


def write_drawn(seed: int, folder: Path) -> Text:
    """Write an index of random codes."""
    random = np.random.default_rng(seed)
    tokens = int(random.integers(1, 80))
    rates = random.choice([0, 0.05, 0.2, 0.6, 1], LATENTS)
    has_code = random.random(tokens) < random.choice([0.7, 1])
    has_code[-1] = True
    codes = (random.random((tokens, LATENTS)) < rates) & has_code[:, None]
    documents = np.cumsum(random.random(tokens) < 0.1)
    cuts = np.unique(random.integers(1, tokens + 1, 4))
    bounds = [0, *cuts[cuts < tokens].tolist(), tokens]
    segments = np.cumsum(random.random(len(bounds)) < 0.6).tolist()
    batches = list(zip(segments, bounds[:-1], bounds[1:], strict=False))
    write_index(folder, codes, has_code, documents, batches)
    return codes, has_code, documents


def units_of(
    codes: Dense, has_code: Dense, documents: NDArray[np.int64], within: str, window: int
) -> tuple[list[int], Dense]:
    """The numbers of all units, and bool [latents, units]: in which of them each latent fires."""
    tokens = range(len(codes))
    of_unit: dict[int, list[int]] = {}
    for token in tokens:
        if within == "document":
            of_unit.setdefault(int(documents[token] - documents[0]), []).append(token)
        elif has_code[token]:
            first = token if within == "token" else max(token - window + 1, 0)
            own = range(first, token + 1)
            of_unit[token] = [each for each in own if documents[each] == documents[token]]
    numbers = [unit for unit, own in of_unit.items() if has_code[own].any()]
    return numbers, np.array([codes[of_unit[unit]].any(0) for unit in numbers]).T


Drawn = list[tuple[CodeIndex, Text]]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, INDEXES - 1),
    both=QUERIES,
    within=st.sampled_from(["token", "window", "document"]),
    window=st.integers(1, 20),
)
def test_a_query_has_the_units_of_a_dense_scan(
    drawn: Drawn, seed: int, both: Both, within: str, window: int
):
    (index, text), (query, scan) = drawn[seed], both
    answer = index.query(query, within, window)
    numbers, dense = units_of(*text, within, window)
    assert list(answer.scope.everything) == numbers
    assert list(answer.units) == np.array(numbers)[scan(dense)].tolist()
    assert index.count(query, within, window) == answer.count == scan(dense).sum()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, INDEXES - 1),
    code=st.sets(st.integers(0, LATENTS - 1)),
    within=st.sampled_from(["token", "document"]),
    distance=st.sampled_from(["hamming", "jaccard"]),
)
def test_neighbours_are_those_of_brute_force(
    drawn: Drawn, seed: int, code: set[int], within: str, distance: str
):
    index, text = drawn[seed]
    found = index.nearest(code, 5, distance, within)
    _, dense = units_of(*text, within, 1)
    own = np.isin(np.arange(LATENTS), list(code))[:, None]
    differing, either = (dense ^ own).sum(0), (dense | own).sum(0)
    expected = differing / np.maximum(either, 1) if distance == "jaccard" else differing
    assert [each.distance for each in found] == sorted(expected.tolist())[:5]


@pytest.mark.parametrize("within", ["token", "window", "document"])
def test_lift_is_that_of_a_dense_scan(drawn: Drawn, within: str):
    for index, text in drawn:
        found = index.cofiring(index.query("0 | 1", within, 3), LATENTS)
        _, dense = units_of(*text, within, 3)
        fits = dense[0] | dense[1]
        together = dense[:, fits].sum(1)
        wanted = [latent for latent in range(2, LATENTS) if together[latent] >= 5]
        lifts = {latent: dense[latent, fits].mean() / dense[latent].mean() for latent in wanted}
        assert {each.latent: each.lift for each in found} == pytest.approx(lifts)
        assert [each.lift for each in found] == sorted((e.lift for e in found), reverse=True)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three documents of 10, 30 and 20 tokens in two segments; latent 0 fires on 5, 12 and 52."""
    codes = np.zeros((60, 3), np.bool_)
    codes[[5, 12, 52], 0] = codes[[13, 30], 1] = True
    documents = np.repeat([0, 1, 2], [10, 30, 20])
    batches = [(0, 0, 25), (1, 25, 60)]
    write_index(tmp_path / "index", codes, np.ones(60, np.bool_), documents, batches)
    return tmp_path / "index"


def test_passages_show_a_match_in_its_own_document(small: Path):
    index = CodeIndex.open(small)
    first, second, third = index.passages(index.query("0"))
    assert [each.first_token for each in (first, second, third)] == [0, 10, 40]
    assert first.tokens == tuple((f" w{number}", number == 5) for number in range(10))
    assert str(second).splitlines()[0] == "text: document 1, token 10"
    assert "w11 «w12» w13" in str(second)
    # The third is in the other segment.
    assert third.document == "text: document 2"
    assert (" w2", True) in third.tokens


def test_a_passage_of_a_window_marks_all_that_the_query_names(small: Path):
    index = CodeIndex.open(small)
    (passage,) = index.passages(index.query("0 & 1", "window", 4))
    assert [text for text, marked in passage.tokens if marked] == [" w12", " w13"]
    (passage,) = index.passages(index.query("0 & 1", "document"))
    assert [text for text, marked in passage.tokens if marked] == [" w12", " w13", " w30"]


def test_passages_come_from_all_of_the_text(small: Path):
    index = CodeIndex.open(small)
    shown = index.passages(index.query("0"), show=2)
    assert [each.document for each in shown] == ["text: document 0", "text: document 2"]


def test_an_empty_answer_says_so(small: Path):
    index = CodeIndex.open(small)
    answer = index.query("0 & 1")
    assert str(answer) == "0 & 1: none of 60 tokens"
    assert index.passages(answer) == index.cofiring(answer) == []


def test_labels_are_read_from_a_file(small: Path, tmp_path: Path):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"1": "the sea"}))
    index = CodeIndex.open(small, labels)
    assert numbers_of(index.query('"the sea"').units).tolist() == [13, 30]
    labels.write_text("[1]")
    with pytest.raises(ValueError, match=r"labels=.*Give a JSON file"):
        CodeIndex.open(small, labels)


def test_a_path_that_is_no_index_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no index.*Make one: sae-binary index"):
        CodeIndex.open(tmp_path)


@pytest.mark.parametrize(("name", "told"), [("bitmaps.bin", "cut short"), ("active.npy", "lacks")])
def test_a_damaged_index_is_refused(small: Path, name: str, told: str):
    path = small / "segments" / "000001" / name
    if told == "lacks":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"000001.*{told}"):
        CodeIndex.open(small)


def test_a_search_imports_no_torch_and_no_host(small: Path):
    script = (
        "import sys; from sae_binary_ext.cli import main\n"
        "assert main(['search', sys.argv[1], '0 & !1', '--cofiring']) == 0\n"
        "assert not {'torch', 'transformers', 'sae_lens', 'numpy.ma'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(small)]
    subprocess.run(command, check=True, capture_output=True)


def test_an_unknown_scope_or_distance_is_named(small: Path):
    index = CodeIndex.open(small)
    with pytest.raises(ValueError, match="within='line': choose one of token, window, document"):
        index.query("1", "line")
    with pytest.raises(ValueError, match="window=0: give a number of at least 1"):
        index.query("1", "window", 0)
    with pytest.raises(ValueError, match="distance='cosine': choose one of hamming, jaccard"):
        index.nearest([1], distance="cosine")
    with pytest.raises(ValueError, match="within='window': choose one of token, document"):
        index.nearest([1], within="window")
