"""Writes the tables of docs/paper1.md."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.paper1.cases import FACTORS, FORMS, KINDS, KS, LAYERS, searched
from benchmarks.paper1.results import grid, line_of, tuned_factor
from benchmarks.result_lines import Line
from benchmarks.tables import ranged, table_of, write_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "paper1.md"
COUNTS = ("bits", "mdl_bits")
COLUMNS: tuple[tuple[str, str, Callable[[Line], float]], ...] = (
    ("FVU", ".3f", lambda line: line["held_out"]["fvu"]),
    ("cross-entropy recovered", ".3f", lambda line: line["in_model"]["cross_entropy_recovered"]),
    ("accuracy", ".3f", lambda line: line["in_model"]["accuracy"]),
    ("bits", ".0f", lambda line: line["held_out"]["bits"]),
    ("bits, MDL", ".0f", lambda line: line["held_out"]["mdl_bits"]),
    ("L0", ".0f", lambda line: line["held_out"]["l0"]),
    ("dead", ".0f", lambda line: line["held_out"]["dead"]),
    ("over 10%", ".0f", lambda line: line["held_out"]["dense"]),
    ("over 50%", ".0f", lambda line: line["held_out"]["ultra_high"]),
)


def write_document(lines: list[Line]) -> None:
    """Write the tables between the document's marks."""
    tables = {
        f"paper1 {form} {layer}": grid_table(layer, form, lines)
        for layer in LAYERS
        for form in FORMS
    }
    write_tables(DOCUMENT, tables | {"paper1 search": search_table(lines)})


def grid_table(layer: int, form: str, lines: list[Line]) -> str:
    """The coders of one place: medians of seeds, with the range."""
    groups = groups_of(layer, form, lines)
    names = [name for name, *_ in COLUMNS]
    rows = [["k", "coder", "seeds", *names, "FVU ratio at equal bits, MDL bits"]]
    for k in KS:
        for kind in KINDS:
            if own := groups.get((kind, k)):
                cells = [ranged([value(line) for line in own], form) for _, form, value in COLUMNS]
                ratios = " / ".join(ratio_at_bits(own, groups, count) for count in COUNTS)
                rows.append([str(k), kind, str(len(own)), *cells, ratios])
    return table_of(rows)


def groups_of(layer: int, form: str, lines: list[Line]) -> dict[tuple[str, int], list[Line]]:
    """The results of one place, with the chosen learning rates, by kind and k."""
    found: dict[tuple[str, int], list[Line]] = {}
    for case in grid([layer], lines):
        if case.form == form and (line := line_of(case, lines)):
            found.setdefault((case.kind, case.k), []).append(line)
    return found


def ratio_at_bits(own: list[Line], groups: dict[tuple[str, int], list[Line]], count: str) -> str:
    """FVU over that of stock topk at as many bits, on the line between its two nearest k.

    The line is straight in logarithms of FVU and bits. Medians of seeds. "none" for stock coders,
    and at bits that no two k of stock topk enclose.
    """

    def middle(group: list[Line], figure: str) -> float:
        return math.log(statistics.median(line["held_out"][figure] for line in group))

    curve = sorted(
        (middle(groups[KINDS[0], k], count), middle(groups[KINDS[0], k], "fvu"))
        for k in KS
        if (KINDS[0], k) in groups
    )
    at = middle(own, count)
    if own[0]["kind"] == KINDS[0] or not curve or not curve[0][0] <= at <= curve[-1][0]:
        return "none"
    bits, errors = zip(*curve, strict=True)
    return f"{math.exp(middle(own, 'fvu') - float(np.interp(at, bits, errors))):.2f}"


def search_table(lines: list[Line]) -> str:
    """FVU on the rows for choosing, by the factor of the learning rate."""
    rows = [["coder", "form", *(f"{factor:g} x" for factor in FACTORS), "chosen"]]
    for form in FORMS:
        for kind in KINDS:
            found = [line_of(case, lines) for case in searched(kind, form)]
            if all(found):
                fvus = [f"{line['choosing']['fvu']:.3f}" for line in found if line]
                rows.append([kind, form, *fvus, f"{tuned_factor(kind, form, lines):g} x"])
    return table_of(rows)
