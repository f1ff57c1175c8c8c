"""The tables and the plot of docs/reconstruction.md."""

import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.reconstruction.activations import SITES, Site
from benchmarks.reconstruction.cases import CASES, Case
from benchmarks.reconstruction.results import Result, find_results

DOCUMENT = Path(__file__).parents[2] / "docs" / "reconstruction.md"
PLOT = DOCUMENT.with_suffix(".svg")
COLOURS = {"topk": "tab:orange", "binary": "tab:blue", "binary_entropy": "tab:green"}
HEADER = (
    "| coder | seeds | FVU | FVU, same articles | L0 | dead | dense >10% | entropy, bits "
    "| bits a token | CE recovered | seconds |\n" + "|---" * 11 + "|\n"
)


def write_document(results: list[Result]) -> None:
    """Put the tables between the document's marks, and draw the plot beside it."""
    text = DOCUMENT.read_text()
    for site in SITES:
        before, begin, rest = text.partition(f"<!-- {site.kind} {site.layer} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{DOCUMENT}: no place for the table of {site}.")
        text = before + begin + _table(results, site) + end + after
    DOCUMENT.write_text(text)
    _draw(results)


def _table(results: list[Result], site: Site) -> str:
    lines = [_row(case, found) for case in CASES if (found := find_results(results, case, site))]
    return "\n" + HEADER + "\n".join(lines) + "\n\n" if lines else "\nNot run yet.\n\n"


def _row(case: Case, results: list[Result]) -> str:
    def median(value: Callable[[Result], float]) -> float:
        return statistics.median(value(result) for result in results)

    fvu = [result.fvu for result in results]
    spread = f" ({min(fvu):.3f} to {max(fvu):.3f})" if len(fvu) > 1 else ""
    cells = (
        case.name,
        str(len(results)),
        f"{median(lambda r: r.fvu):.3f}{spread}",
        f"{median(lambda r: r.fvu_choosing):.3f}",
        f"{median(lambda r: r.l0):.1f}",
        f"{median(lambda r: r.dead):.0f}",
        f"{median(lambda r: r.dense):.0f}",
        f"{median(lambda r: r.entropy_bits):.0f}",
        f"{median(lambda r: r.bits):.0f}",
        f"{median(lambda r: r.recovered):.1%}",
        f"{median(lambda r: r.seconds):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _draw(results: list[Result]) -> None:
    """FVU against bits a token, one panel a site."""
    # The same results give the same file.
    mpl.rcParams["svg.hashsalt"] = "reconstruction"
    shown = [site for site in SITES if any(find_results(results, case, site) for case in CASES)]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 4.5), squeeze=False, layout="constrained"
    )
    for panel, site in zip(panels[0], shown, strict=True):
        for family, colour in COLOURS.items():
            points = [
                (statistics.median(r.bits for r in found), statistics.median(r.fvu for r in found))
                for case in CASES
                if case.family == family and (found := find_results(results, case, site))
            ]
            if points:
                panel.scatter(*zip(*points, strict=True), label=family, color=colour)
        panel.set(title=f"{site.kind}, layer {site.layer}", xlabel="bits a token", xscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("FVU on held-out articles")
    panels[0][0].legend()
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
