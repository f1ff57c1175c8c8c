"""Writes the tables and the plot of the comparison by training tokens."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.reconstruction.cases import WITH_VALUES
from benchmarks.scale.cases import AUTOENCODER, DEFAULTS, PRICES, SEARCHED, Place
from benchmarks.scale.results import is_of_search, is_tuned, pairs_with_defaults, score
from benchmarks.tables import table_of, write_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "reconstruction.md"
PLOT = DOCUMENT.with_name("scale.svg")
HEADER = (
    "| training tokens | coder | lr | batch | seeds | FVU | L0 | dead | dense >10% "
    "| bits, 8 a value | bits, MDL | CE recovered | seconds |\n" + "|---" * 13 + "|\n"
)
OF_STOCK = "| stock, 8 a value | ratio | stock, MDL | ratio "
RATIO_HEADER = (
    f"| training tokens | binary coder | bits | FVU {OF_STOCK}| CE lost {OF_STOCK}|\n"
    + "|---" * 13
    + "|\n"
)
Line = dict[str, Any]
Value = Callable[[Line], float]
# Marks of the plot by the number of training tokens.
STYLES = {
    "topk": ("tab:orange", "o"),
    "batchtopk": ("tab:red", "s"),
    "jumprelu": ("tab:brown", "^"),
    "matching_pursuit": ("tab:olive", "P"),
    "binary": ("tab:blue", "v"),
    "binary_entropy": ("tab:green", "D"),
    "binary_refined": ("tab:purple", "*"),
}


def write_document(lines: list[Line]) -> None:
    """Write the tables between the document's marks, and the plot into a file next to it."""
    tuned = {place: [line for line in lines if is_tuned(line, place)] for place in PRICES}
    tables = {f"scale {place.kind} {place.layer}": _tables(own) for place, own in tuned.items()}
    for kind in SEARCHED:
        of_search = [line for line in lines if is_of_search(line, kind)]
        tables[f"scale search {kind}"] = _table(of_search)
    tables["scale defaults"] = defaults_table(lines)
    write_tables(DOCUMENT, tables)
    _draw(tuned)


def _groups(lines: list[Line]) -> list[list[Line]]:
    """Lines that differ in their seed alone, sorted by tokens and case."""
    groups: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["tokens"], line["case"])):
        key = f"{line['tokens']} {line['settings']}"
        groups.setdefault(key, []).append(line)
    return list(groups.values())


def _tables(lines: list[Line]) -> str:
    groups = _groups(lines)
    ratios = [
        row
        for group in groups
        if not _has_values(group) and (row := ratio_row(group, groups)) is not None
    ]
    return _table(lines) + (RATIO_HEADER + "\n".join(ratios) + "\n\n" if ratios else "")


def _table(lines: list[Line]) -> str:
    rows = "\n".join(_row(group) for group in _groups(lines))
    return f"\n{HEADER}{rows}\n\n" if rows else "\nNot run yet.\n\n"


def defaults_table(lines: list[Line]) -> str:
    """Coders with defaults beside those with the best settings, with the ratio at equal bits."""
    head = ["training tokens", "coder", "FVU", "bits", "dead", "dense >10%"]
    head += ["best settings: FVU", "bits", "dead", "dense >10%", "ratio at equal bits"]
    rows = [
        [
            f"{own['tokens']:,}",
            own["case"].removesuffix(DEFAULTS),
            *(
                format(line["held_out"][name], form)
                for line in (own, best)
                for name, form in (("fvu", ".4f"), ("bits", ".0f"), ("dead", "d"), ("dense", "d"))
            ),
            f"{score(own, AUTOENCODER, 'held_out') / score(best, AUTOENCODER, 'held_out'):.2f}",
        ]
        for own, best in pairs_with_defaults(sorted(lines, key=lambda line: line["tokens"]))
    ]
    return table_of([head, *rows])


def _median(group: list[Line], value: Value) -> float:
    return statistics.median(value(line) for line in group)


def _held_out(name: str) -> Value:
    return lambda line: line["held_out"][name]


def _row(group: list[Line]) -> str:
    median = functools.partial(_median, group)
    fvu = [line["held_out"]["fvu"] for line in group]
    spread = f" ({min(fvu):.4f} to {max(fvu):.4f})" if len(fvu) > 1 else ""
    settings = group[0]["settings"]
    cells = (
        f"{group[0]['tokens']:,}",
        group[0]["case"],
        f"{settings['lr']:g}",
        str(settings["batch_size"]),
        str(len(group)),
        f"{median(_held_out('fvu')):.4f}{spread}",
        f"{median(_held_out('l0')):.1f}",
        f"{median(_held_out('dead')):.0f}",
        f"{median(_held_out('dense')):.0f}",
        f"{median(_held_out('bits')):.0f}",
        f"{median(_held_out('mdl_bits')):.0f}",
        f"{median(lambda line: line['recovered']):.1%}",
        f"{median(lambda line: line['seconds']):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _family(group: list[Line]) -> str:
    return group[0]["settings"]["family"]


def _has_values(group: list[Line]) -> bool:
    return _family(group) in WITH_VALUES


def ratio_row(binary: list[Line], groups: list[list[Line]]) -> str | None:
    """A binary coder beside the best stock coder of as many bits, by both ways to count bits.

    None if no stock coder with as many bits was trained on as many tokens.
    """
    bits = _median(binary, _held_out("bits"))
    stock = [
        group
        for group in groups
        if _has_values(group) and group[0]["tokens"] == binary[0]["tokens"]
    ]
    cells = [f"{binary[0]['tokens']:,}", binary[0]["case"], f"{bits:.0f}"]
    compared = False
    for error, form in ((_held_out("fvu"), ".4f"), (_lost, ".2%")):
        own = _median(binary, error)
        cells.append(format(own, form))
        for count in ("bits", "mdl_bits"):
            best = best_stock(stock, count, bits, error)
            compared = compared or best is not None
            cells += [format(best, form), f"{own / best:.2f}"] if best else ["none trained", ""]
    return f"| {' | '.join(cells)} |" if compared else None


def _lost(line: Line) -> float:
    """Share of the model's cross-entropy that the coder does not recover."""
    return 1 - line["recovered"]


def best_stock(stock: list[list[Line]], count: str, bits: float, error: Value) -> float | None:
    """The lowest error of a stock family at these bits; None if all stock coders have fewer.

    count names the way to count bits, and error is the figure that is compared. Between two coders
    of a family the error is read off a line, straight in the logarithms of error and bits. If no
    family has a coder on either side, the coder with the fewest bits above stands for stock coders,
    which favours them.
    """
    points = sorted(
        (_median(group, _held_out(count)), _median(group, error), _family(group)) for group in stock
    )
    found: list[float] = []
    for family in {family for *_, family in points}:
        own = [point for point in points if point[2] == family]
        for (low, error_low, _), (high, error_high, _) in itertools.pairwise(own):
            if low < bits <= high:
                share = math.log(bits / low) / math.log(high / low)
                found.append(error_low ** (1 - share) * error_high**share)
    above = [found_error for of_coder, found_error, _ in points if of_coder >= bits]
    return min(found) if found else next(iter(above), None)


def _draw(lines: dict[Place, list[Line]]) -> None:
    """Draw FVU by bits a token, a panel for each place; larger marks for more training tokens."""
    # With a fixed salt, the same results give the same file.
    mpl.rcParams["svg.hashsalt"] = "scale"
    shown = {place: own for place, own in lines.items() if own}
    if not shown:
        return
    figure, panels = plt.subplots(
        1, len(shown), figsize=(4.5 * len(shown), 4.5), squeeze=False, layout="constrained"
    )
    for panel, (place, own) in zip(panels[0], shown.items(), strict=True):
        for family, (colour, marker) in STYLES.items():
            for group in _groups(own):
                if _family(group) == family:
                    panel.scatter(
                        _median(group, _held_out("mdl_bits")),
                        _median(group, _held_out("fvu")),
                        s=20 * (1 + math.log10(group[0]["tokens"] / 3e5)) ** 2,
                        color=colour,
                        marker=marker,
                    )
        panel.set(title=f"{place.kind}, layer {place.layer}", xlabel="bits a token (MDL)")
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("FVU on held-out documents")
    handles = [
        panels[0][0].scatter([], [], color=colour, marker=marker, label=family)
        for family, (colour, marker) in STYLES.items()
    ]
    panels[0][-1].legend(handles=handles)
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
