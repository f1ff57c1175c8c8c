"""Writes what judges found into docs/paper1.md: tables, and a plot of scores by firing rate."""

from itertools import groupby

from matplotlib import pyplot as plt

from benchmarks.paper1.cases import KINDS, KS
from benchmarks.paper1.document import DOCUMENT
from benchmarks.paper1.judging import GROUPS
from benchmarks.result_lines import Line
from benchmarks.tables import table_of, write_tables

PLOT = DOCUMENT.with_name("paper1-scores.png")
COLOURS = dict(zip(KINDS, ("tab:orange", "tab:gray", "tab:blue"), strict=True))


def write_scores(judged: list[Line]) -> None:
    """Write the tables between the document's marks, and the plot into a file next to it."""
    ordered = sorted(judged, key=_order)
    tables = {"paper1 scores": scores_table(ordered), "paper1 silenced": silenced_table(ordered)}
    write_tables(DOCUMENT, tables)
    if ordered:
        _draw(ordered)


def _order(line: Line) -> tuple[str, str, int, int, int]:
    return line["judge"], line["form"], line["layer"], line["k"], KINDS.index(line["kind"])


def _place(line: Line) -> list[str]:
    return [str(line["layer"]), line["form"], str(line["k"]), line["kind"]]


def scores_table(judged: list[Line]) -> str:
    """Mean scores with intervals over latents, each latent counted once and by its firings."""
    head = ["judge", "layer", "form", "k", "coder", "scored", "mean score", "mean by firings"]
    rows = [
        [
            line["judge"],
            *_place(line),
            f"{line['scored']} of {line['drawn']}",
            _told(line.get("area") or line["accuracy"], ".3f"),
            _told(line["by_firings"], ".3f"),
        ]
        for line in judged
    ]
    return table_of([head, *rows])


def silenced_table(judged: list[Line]) -> str:
    """Rise of the loss for each group of latents, the best judged first, and for random latents."""
    head = ["layer", "form", "k", "coder", "group", "latents", "share of firings"]
    head += ["loss +", "random: share of firings", "loss +"]
    rows = [
        [
            *_place(line),
            f"{number} of {GROUPS}",
            str(group["latents"]),
            f"{group['ones']:.1%}",
            _told(group["loss"], ".3f"),
            f"{group['random_ones']:.1%}" if group["random_loss"] else "none",
            _told(group["random_loss"], ".3f") if group["random_loss"] else "none",
        ]
        for line in judged
        for number, group in enumerate(line["silenced"], 1)
    ]
    return table_of([head, *rows])


def _told(figure: Line, form: str) -> str:
    """A figure with its interval."""
    if figure["value"] is None:
        return "none"
    low, high = (format(end, form) for end in figure["interval"])
    return f"{figure['value']:{form}} [{low}, {high}]"


def _draw(judged: list[Line]) -> None:
    """Draw scores by firing rate: a row of panels for each judge and place, a panel for each k."""
    places = [
        (key, list(lines))
        for key, lines in groupby(judged, lambda line: (line["judge"], line["form"], line["layer"]))
    ]
    size = (3 * len(KS), 3 * len(places))
    figure, panels = plt.subplots(
        len(places),
        len(KS),
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for row, ((judge, form, layer), lines) in zip(panels, places, strict=True):
        for panel, k in zip(row, KS, strict=True):
            for line in lines:
                if line["k"] == k and line["latents"]:
                    rates, areas = zip(*line["latents"], strict=True)
                    panel.scatter(rates, areas, s=4, alpha=0.5, color=COLOURS[line["kind"]])
            panel.set(title=f"{form}, layer {layer}, k = {k}", xscale="log")
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"score, {judge.partition(',')[0]}")
    for panel in panels[-1]:
        panel.set_xlabel("firing rate")
    handles = [
        panels[0][0].scatter([], [], color=colour, label=kind) for kind, colour in COLOURS.items()
    ]
    panels[0][0].legend(handles=handles)
    figure.savefig(PLOT, dpi=90)
    plt.close(figure)
