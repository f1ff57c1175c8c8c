"""Writes the tables and the plot of docs/short-training.md."""

import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.reconstruction.activations import SITES, Site
from benchmarks.reconstruction.cases import Case, all_cases
from benchmarks.reconstruction.results import Result, find_results
from benchmarks.tables import write_tables

# Tables look up all cases, because a case may have results at a site where it is no longer run.
CASES = all_cases()
# A coder is not compared if more latents than this are dense (active on over 10% of the tokens).
MOST_DENSE = 10
DOCUMENT = Path(__file__).parents[2] / "docs" / "short-training.md"
PLOT = DOCUMENT.with_suffix(".svg")
COLOURS = {"topk": "tab:orange", "binary": "tab:blue", "binary_entropy": "tab:green"}
HEADER = (
    "| coder | seeds | FVU | FVU, other articles | L0 | dead | dense >10% | entropy, bits "
    "| bits a token | CE recovered | seconds |\n" + "|---" * 11 + "|\n"
)
RATIO_HEADER = (
    "| stock coder | bits a token | FVU | binary coder | bits a token | FVU | ratio "
    "| ratio, other articles |\n" + "|---" * 8 + "|\n"
)


def write_document(results: list[Result]) -> None:
    """Write the tables between the document's marks, and the plot into a file next to it."""
    tables = {f"{site.kind} {site.layer}": _table(results, site) for site in SITES}
    write_tables(DOCUMENT, tables)
    _draw(results)


def _table(results: list[Result], site: Site) -> str:
    found = {case: of_case for case in CASES if (of_case := find_results(results, case, site))}
    if not found:
        return "\nNot run yet.\n\n"
    lines = [_row(case, of_case) for case, of_case in found.items()]
    ratios = [
        _ratio_row(case, best, found)
        for case in found
        if case.stores_values and (best := _best_binary(case, found))
    ]
    table = "\n" + HEADER + "\n".join(lines) + "\n\n"
    return table + (RATIO_HEADER + "\n".join(ratios) + "\n\n" if ratios else "")


def _median(results: list[Result], value: Callable[[Result], float]) -> float:
    return statistics.median(value(result) for result in results)


def _row(case: Case, results: list[Result]) -> str:
    median = functools.partial(_median, results)
    fvu = [result.held_out.fvu for result in results]
    spread = f" ({min(fvu):.3f} to {max(fvu):.3f})" if len(fvu) > 1 else ""
    cells = (
        case.name,
        str(len(results)),
        f"{median(lambda r: r.held_out.fvu):.3f}{spread}",
        f"{median(lambda r: r.held_out_articles.fvu):.3f}",
        f"{median(lambda r: r.held_out.l0):.1f}",
        f"{median(lambda r: r.held_out.dead):.0f}",
        f"{median(lambda r: r.held_out.dense):.0f}",
        f"{median(lambda r: r.held_out.entropy_bits):.0f}",
        f"{median(_bits):.0f}",
        f"{median(lambda r: r.recovered):.1%}",
        f"{median(lambda r: r.seconds):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _bits(result: Result) -> float:
    return result.held_out.bits


def _choosing_fvu(result: Result) -> float:
    return result.choosing.fvu


def _best_binary(stock: Case, found: dict[Case, list[Result]]) -> Case | None:
    """The binary coder with the lowest FVU on the choosing rows and few dense latents.

    Its bits per token are at most those of the stock coder.
    """
    most = min(result.held_out.bits for result in found[stock])
    fitting = [
        case
        for case, results in found.items()
        if not case.stores_values
        and _median(results, _bits) <= most
        and _median(results, lambda r: r.choosing.dense) <= MOST_DENSE
    ]
    return min(fitting, key=lambda case: _median(found[case], _choosing_fvu), default=None)


def _ratio_row(stock: Case, binary: Case, found: dict[Case, list[Result]]) -> str:
    pair = found[stock], found[binary]
    bits = [_median(results, _bits) for results in pair]
    fvu = [_median(results, lambda r: r.held_out.fvu) for results in pair]
    fvu_articles = [_median(results, lambda r: r.held_out_articles.fvu) for results in pair]
    cells = (
        stock.name,
        f"{bits[0]:.0f}",
        f"{fvu[0]:.3f}",
        binary.name,
        f"{bits[1]:.0f}",
        f"{fvu[1]:.3f}",
        f"{fvu[1] / fvu[0]:.2f}",
        f"{fvu_articles[1] / fvu_articles[0]:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _draw(results: list[Result]) -> None:
    """Draw FVU by bits per token, with one panel for each site."""
    # With a fixed salt, the same results give the same file.
    mpl.rcParams["svg.hashsalt"] = "reconstruction"
    shown = [site for site in SITES if any(find_results(results, case, site) for case in CASES)]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 4.5), squeeze=False, layout="constrained"
    )
    for panel, site in zip(panels[0], shown, strict=True):
        for family, colour in COLOURS.items():
            points = [
                (_median(found, _bits), _median(found, lambda r: r.held_out.fvu))
                for case in CASES
                if case.family == family and (found := find_results(results, case, site))
            ]
            if points:
                panel.scatter(*zip(*points, strict=True), label=family, color=colour)
        panel.set(title=f"{site.kind}, layer {site.layer}", xlabel="bits a token", xscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("FVU on held-out rows")
    panels[0][0].legend()
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
