"""Writes the tables of docs/finetune.md."""

from pathlib import Path

from benchmarks.finetuning.coders import KINDS
from benchmarks.finetuning.results import SEARCHED, final_run, line_of, search_runs
from benchmarks.finetuning.running import Run
from benchmarks.result_lines import Line
from benchmarks.tables import table_of, write_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "finetune.md"
LOSSES = {"rise": "rise of cross-entropy", "divergence": "divergence"}


def write_document(lines: list[Line]) -> None:
    """Write the tables between the document's marks."""
    final = [
        (run, line)
        for kind in KINDS
        if (run := final_run(kind, lines)) and (line := line_of(run, lines))
    ]
    tables = {
        "finetune search": search_table(lines),
        "finetune losses": losses_table(final),
        "finetune coders": coders_table(final),
    }
    write_tables(DOCUMENT, tables)


def named(kind: str) -> str:
    """A kind's family with its k."""
    family, k = KINDS[kind]
    return f"{family}, k = {k}"


def search_table(lines: list[Line]) -> str:
    """The divergence of the last training steps for each kind and setting."""
    found = {run: line for run in search_runs() if (line := line_of(run, lines))}
    heads = [" ".join([f"lr {lr:g}", *parameters]) for lr, parameters in SEARCHED]
    rows = [
        [named(kind)]
        + [f"{line['last_divergence']:.3f}" for run, line in found.items() if run.kind == kind]
        for kind in KINDS
    ]
    complete = [row for row in rows if len(row) == 1 + len(SEARCHED)]
    return table_of([["coders", *heads], *complete])


def losses_table(final: list[tuple[Run, Line]]) -> str:
    """Losses with all coders spliced in, before and after."""
    head = ["coders", "tokens", "lr"]
    head += ["bits a token, sum of the four", "after", "bits, MDL", "after"]
    head += [cell for name in LOSSES.values() for cell in (f"{name}, before", "after", "fall")]
    rows = [
        [
            named(run.kind),
            f"{run.tokens:,}",
            f"{run.lr:g}",
            *(
                f"{sum(coder[key]['value'] for coder in line['coders']):.0f}"
                for key in ("bits_before", "bits_after")
            ),
            *(f"{line[key]:.0f}" for key in ("mdl_bits_before", "mdl_bits_after")),
            *(
                told(line["losses"][loss][part], ".1%" if part == "fall" else ".3f")
                for loss in LOSSES
                for part in ("before", "after", "fall")
            ),
        ]
        for run, line in final
    ]
    return table_of([head, *rows])


def coders_table(final: list[tuple[Run, Line]]) -> str:
    """Figures of each coder alone, before and after."""
    head = ["coders", "at", "FVU", "after", "bits", "after", "dead", "after"]
    rows = [
        [
            named(run.kind),
            coder["site"],
            *(told(coder[f"fvu_{when}"], ".3f") for when in ("before", "after")),
            *(told(coder[f"bits_{when}"], ".0f") for when in ("before", "after")),
            *(str(coder[f"dead_{when}"]) for when in ("before", "after")),
        ]
        for run, line in final
        for coder in line["coders"]
    ]
    return table_of([head, *rows])


def told(figure: Line, form: str) -> str:
    """A figure with its interval, if there was more than one document."""
    if None in figure["interval"]:
        return format(figure["value"], form)
    low, high = (format(end, form) for end in figure["interval"])
    return f"{figure['value']:{form}} [{low}, {high}]"
