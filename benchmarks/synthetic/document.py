"""Writes the tables of docs/synthetic.md."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.result_lines import Line
from benchmarks.synthetic.cases import FAMILIES, LEVELS, SEARCH_WORLD, WORLDS
from benchmarks.synthetic.results import searched, tuned
from benchmarks.tables import ranged, table_of, write_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "synthetic.md"
COLUMNS: tuple[tuple[str, str, Callable[[Line], float]], ...] = (
    ("MCC", ".3f", lambda line: line["mcc"]),
    ("F1", ".3f", lambda line: line["classification"]["f1_score"]),
    ("precision", ".3f", lambda line: line["classification"]["precision"]),
    ("recall", ".3f", lambda line: line["classification"]["recall"]),
    ("uniqueness", ".3f", lambda line: line["uniqueness"]),
    ("explained variance", ".3f", lambda line: line["explained_variance"]),
    ("L0", ".1f", lambda line: line["sae_l0"]),
    ("dead", ".0f", lambda line: line["dead_latents"]),
)
GROUPS: tuple[tuple[str, str, str], ...] = (
    ("latents a feature", ".2f", "latents"),
    ("features without", ".0%", "without"),
    ("with several", ".0%", "several"),
    ("magnitude told", ".2f", "told"),
)


def write_document(lines: list[Line]) -> None:
    """Write the tables between the document's marks."""
    tables = {f"synthetic {world}": world_table(world, lines) for world in WORLDS}
    tables |= {"synthetic groups": groups_table(lines), "synthetic search": search_table(lines)}
    write_tables(DOCUMENT, tables)


def of_runs(world: str, family: str, lines: list[Line]) -> list[Line]:
    """The results of a family's best case in a world, of all seeds."""
    case = tuned(family, lines)
    found = [line for line in lines if case and line["case"] == asdict(case)]
    return [line for line in found if line["world"] == world]


def world_table(world: str, lines: list[Line]) -> str:
    """The families' recovery in one world, medians of seeds with the range."""
    rows = [["coder", "lr", "price", "seeds", *(label for label, *_ in COLUMNS)]]
    for family in FAMILIES:
        if own := of_runs(world, family, lines):
            case = own[0]["case"]
            cells = [ranged([value(line) for line in own], form) for _, form, value in COLUMNS]
            rows.append([family, f"{case['lr']:g}", f"{case['price']:g}", str(len(own)), *cells])
    return table_of(rows)


def groups_table(lines: list[Line]) -> str:
    """Latents of each feature, by the world and by the number of levels of magnitude."""
    rows = [["world", "levels", "coder", *(label for label, *_ in GROUPS)]]
    for world in WORLDS:
        for name in ("all", *map(str, LEVELS)):
            for family in FAMILIES:
                own = [e for e in of_runs(world, family, lines) if name in e["groups"]]
                cells = [
                    ranged([each["groups"][name][key] for each in own], form)
                    for _, form, key in GROUPS
                ]
                if own:
                    rows.append([world, name, family, *cells])
    return table_of(rows)


def search_table(lines: list[Line]) -> str:
    """All results of the search."""
    rows = [["coder", "lr", "price", "explained variance", "L0", "MCC", "chosen"]]
    for family in FAMILIES:
        best = tuned(family, lines)
        for case in searched(family):
            for line in lines:
                if (line["case"], line["world"], line["seed"]) == (asdict(case), SEARCH_WORLD, 0):
                    figures = [
                        f"{line['explained_variance']:.3f}",
                        f"{line['sae_l0']:.1f}",
                        f"{line['mcc']:.3f}",
                    ]
                    chosen = "yes" if case == best else ""
                    rows.append([family, f"{case.lr:g}", f"{case.price:g}", *figures, chosen])
    return table_of(rows)
