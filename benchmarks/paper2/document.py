"""Writes the tables of docs/paper2.md."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scipy.stats import t

from benchmarks.paper2.cases import (
    ACTIVE_LATENTS,
    BINARY,
    EXPANSION,
    FAMILIES,
    STOCK,
    WIDTH,
    searched,
)
from benchmarks.paper2.coders import APART, FITTING, TOO_FEW, CoderRun
from benchmarks.paper2.profiles import IN_CONTEXT, LAYERS, POSITIONS, ProfileRun, Reading
from benchmarks.paper2.results import (
    PROFILE_SEEDS,
    SEEDS,
    chosen,
    line_of,
    profile_runs,
    score_runs,
)
from benchmarks.result_lines import Line
from benchmarks.tables import ranged, table_of, write_tables
from sae_binary_ext.commands.interpret.interpret_scores import mean_over_latents
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL
from sae_binary_ext.measure.documents import CONFIDENCE, Estimate
from sae_binary_ext.report.tables import shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "paper2.md"
# Marks that count, by the figure that counts them.
COUNTED = {"interpretable": (FITTING, APART), "told apart": (APART,)}
# Numbers of examples between which the entropy falls.
FIRST, LAST = 2, 15
Key = tuple[str, str]


def write_document(lines: list[Line]) -> None:
    """Write the tables between the document's marks."""
    tables = {
        "paper2 scores": scores_table(lines),
        "paper2 differences": differences_table(lines),
        "paper2 coders": coders_table(lines),
        "paper2 search": search_table(lines),
        "paper2 in_context": in_context_table(lines),
        "paper2 falls": falls_table(lines),
        "paper2 positions": positions_table(lines),
    }
    write_tables(DOCUMENT, tables)


def judges(lines: Sequence[Line]) -> list[str]:
    """The judges that have scored anything, the embedding first."""
    found = {line["judge"] for line in lines if line["kind"] == "score"}
    return sorted(found, key=lambda judge: (judge != EMBEDDING_MODEL, judge))


def scored(judge: str, lines: Sequence[Line]) -> dict[Key, dict[int, Line]]:
    """Lines of a judge's scores, by family and way of giving, and by seed."""
    found: dict[Key, dict[int, Line]] = {}
    for seed in SEEDS:
        for run in score_runs(seed, judge, lines):
            if (line := line_of(run, lines)) is not None:
                found.setdefault((run.case.family, run.giving), {})[seed] = line
    return found


def share(marks: Iterable[str], figure: str) -> Estimate:
    """Share of latents that count, with an interval over latents."""
    return mean_over_latents((float(mark in COUNTED[figure]), 1.0) for mark in marks)


def difference(one: dict[int, Line], other: dict[int, Line], figure: str) -> Estimate | None:
    """Difference of shares over the seeds that both have, with an interval over latents."""
    seeds = sorted(one.keys() & other.keys())
    pairs = [
        pair
        for seed in seeds
        for pair in zip(one[seed]["marks"], other[seed]["marks"], strict=True)
    ]
    counted = COUNTED[figure]
    if not pairs:
        return None
    return mean_over_latents(
        (float(first in counted) - float(second in counted), 1.0) for first, second in pairs
    )


def scores_table(lines: Sequence[Line]) -> str:
    """Interpretable latents of all coders, by each judge."""
    head = ["judge", "coder", "tokens given by", "seeds", "drawn", "scored", "interpretable"]
    head += ["told apart", "of 2304, interpretable", "of 2304, told apart", "own fit", "others fit"]
    rows = [head]
    for judge in judges(lines):
        for (family, giving), by_seed in ordered(scored(judge, lines)):
            marks = "".join(line["marks"] for line in by_seed.values())
            shares = [share(marks, figure) for figure in COUNTED]
            cells = [" ".join(shown(each, ".1%")).strip() for each in shares]
            counts = [" ".join(shown(scaled(each), ".0f")).strip() for each in shares]
            fits = [
                ranged([line[name] for line in by_seed.values() if line[name] is not None], ".2f")
                for name in ("fitting", "others_fitting")
            ]
            numbers = [str(len(marks)), str(len(marks) - marks.count(TOO_FEW))]
            rows.append(
                [judge, family, giving, str(len(by_seed)), *numbers, *cells, *counts, *fits]
            )
    return table_of(rows)


def ordered(found: dict[Key, dict[int, Line]]) -> list[tuple[Key, dict[int, Line]]]:
    """Scores in the order of the families and their ways of giving."""
    keys = [(name, giving) for name, kind in FAMILIES.items() for giving in kind.givings]
    return [(key, found[key]) for key in keys if key in found]


def scaled(estimate: Estimate) -> Estimate:
    """A share of latents as a number of the coder's latents."""
    latents = EXPANSION * WIDTH
    return Estimate(estimate.value * latents, estimate.low * latents, estimate.high * latents)


def best_stock(found: dict[Key, dict[int, Line]], figure: str) -> Key | None:
    """The stock coder, and way of giving, with the highest share."""
    stock = [key for key in found if key[0] in STOCK]

    def value(key: Key) -> float:
        return share("".join(line["marks"] for line in found[key].values()), figure).value

    return max(stock, key=value, default=None)


def differences_table(lines: Sequence[Line]) -> str:
    """Shares of the binary coders less those of the best stock coder, of ReLU and of chance."""
    rows = [["judge", "figure", "coder", "less", "difference"]]
    for judge in judges(lines):
        found = scored(judge, lines)
        for figure in COUNTED:
            best = best_stock(found, figure)
            others = [("the best stock coder", best)] if best else []
            others += [("", ("relu", giving)) for giving in FAMILIES["relu"].givings]
            others += [("", ("topk", ACTIVE_LATENTS))]
            others += [("", ("random weights", "rescaled")), ("", ("random latents", "random"))]
            for family in BINARY:
                own = found.get((family, FAMILIES[family].givings[0]))
                for called, key in others:
                    named_already = not called and key == best
                    if own is None or key not in found or named_already:
                        continue
                    between = difference(own, found[key], figure)
                    if between is not None:
                        name = ", ".join(key) + (f" ({called})" if called else "")
                        cell = " ".join(shown(between, "+.1%")).strip()
                        rows.append([judge, figure, family, name, cell])
    return table_of(rows)


def coders_table(lines: Sequence[Line]) -> str:
    """Reconstruction and sparsity of the chosen coders, medians of seeds with the range."""
    figures: tuple[tuple[str, str, Callable[[Line], float]], ...] = (
        ("L0, training", ".1f", lambda line: line["train"]["l0"]),
        ("L0", ".1f", lambda line: line["held_out"]["l0"]),
        ("FVU", ".3f", lambda line: line["held_out"]["fvu"]),
        ("dead", ".0f", lambda line: line["held_out"]["dead"]),
        ("above 10%", ".0f", lambda line: line["held_out"]["dense"]),
        ("bits of support", ".0f", lambda line: line["held_out"]["entropy_bits"]),
    )
    rows = [["coder", "price", "seeds", *(label for label, *_ in figures)]]
    for family in FAMILIES:
        case = chosen(family, lines)
        runs = [CoderRun(case, seed) for seed in SEEDS] if case else []
        own = [line for run in runs if (line := line_of(run, lines)) is not None]
        if case and own:
            cells = [ranged([value(line) for line in own], form) for _, form, value in figures]
            rows.append([family, f"{case.price:g}", str(len(own)), *cells])
    return table_of(rows)


def search_table(lines: Sequence[Line]) -> str:
    """The searched prices, and the L0 on training rows by which one was chosen."""
    rows = [["coder", "price", "L0, training", "chosen"]]
    for family in FAMILIES:
        for case in searched(family) if len(searched(family)) > 1 else []:
            line = line_of(CoderRun(case, 0), lines)
            if line is not None:
                yes = "yes" if case == chosen(family, lines) else ""
                rows.append([family, f"{case.price:g}", f"{line['train']['l0']:.1f}", yes])
    return table_of(rows)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds, with the 95% interval of Student's t; the ends are NaN for one seed."""
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return Estimate(mean, math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(number)
    half = float(t.ppf((1 + CONFIDENCE) / 2, number - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def profile_table(of: str, label: str, lines: Sequence[Line]) -> str:
    """Entropy at each point with reading seed 0: means over training seeds, with intervals."""
    rows: list[list[str]] = []
    for layer in LAYERS:
        runs = [run for run in profile_runs() if run.reading == Reading(of) and run.layer == layer]
        own = [line for run in runs if (line := line_of(run, lines)) is not None]
        if not own:
            continue
        points = [list(each) for each in zip(*(line["points"] for line in own), strict=True)]
        if not rows:
            rows = [["layer", "figure", "seeds", *(f"{label} {each[0]['at']}" for each in points)]]
        for figure, form in (("fvu", ".3f"), ("independent", ".1f"), ("tree", ".1f")):
            found = (over_seeds([point[figure] for point in each]) for each in points)
            cells = [" ".join(shown(each, form)).strip() for each in found]
            rows.append([str(layer), figure.replace("fvu", "FVU"), str(len(own)), *cells])
    return table_of(rows or [["layer"]])


def in_context_table(lines: Sequence[Line]) -> str:
    """Entropy by the number of examples before the answer."""
    return profile_table(IN_CONTEXT, "examples", lines)


def positions_table(lines: Sequence[Line]) -> str:
    """Entropy by the position in the text."""
    return profile_table(POSITIONS, "position", lines)


def falls_table(lines: Sequence[Line]) -> str:
    """How far entropy falls from FIRST examples to LAST, over seeds of training and of prompts."""
    rows = [["layer", "over seeds of", "seeds", "figure", f"{FIRST} examples less {LAST}", "share"]]
    for layer in LAYERS:
        groups = {
            "training": [ProfileRun(Reading(IN_CONTEXT), layer, seed) for seed in PROFILE_SEEDS],
            "prompts": [ProfileRun(Reading(IN_CONTEXT, seed), layer, 0) for seed in PROFILE_SEEDS],
        }
        for over, runs in groups.items():
            own = [line for run in runs if (line := line_of(run, lines)) is not None]
            for figure in ("independent", "tree", "blocks", "fvu"):
                if len(own) > 1 or (own and over == "training"):
                    rows.append([str(layer), over, str(len(own)), *fall_cells(own, figure)])
    return table_of(rows)


def fall_cells(lines: Sequence[Line], figure: str) -> list[str]:
    """A figure's name, its fall and the fall as a share of where it starts, with intervals."""
    ends = [
        tuple(
            next(point[figure] for point in line["points"] if point["at"] == at)
            for at in (FIRST, LAST)
        )
        for line in lines
    ]
    falls = over_seeds([first - last for first, last in ends])
    shares = over_seeds([1 - last / first for first, last in ends])
    form = "+.3f" if figure == "fvu" else "+.1f"
    name = "FVU" if figure == "fvu" else f"bits, {figure}"
    return [name, " ".join(shown(falls, form)).strip(), " ".join(shown(shares, ".1%")).strip()]
