"""The page of `sae-binary probe`: its tables and plots."""

from dataclasses import dataclass, replace

import torch

from sae_binary_ext.commands.probe.config import LATENTS, ProbeConfig
from sae_binary_ext.commands.probe.probe_fits import STATES, ProbeScore
from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled
from sae_binary_ext.report import Analysis, Column, analysis_of, table_of
from sae_binary_ext.report.plots import curves
from sae_binary_ext.report.tables import with_meanings

# Column heads, by number of latents; 0 stands for all.
HEADS = {**{number: f"{number} latent{'s' * (number > 1)}" for number in LATENTS}, 0: "all"}
PLOTTED = 16


@dataclass(frozen=True)
class Probed:
    """A coder's codes in one form, or hidden states, with their scores.

    bits: bits a token of the codes on the text; None for hidden states. scores are in the order of
    the tasks.
    """

    coder: str
    form: str
    bits: float | None
    scores: list[ProbeScore]

    @property
    def name(self) -> str:
        """Coder and form."""
        return self.coder if self.form == STATES else f"{self.coder}, {self.form}"

    def of_tasks(self, measure: str, latents: int) -> list[float]:
        """One figure of each task, by the probe of so many latents; empty if there is none."""
        return [getattr(each, measure) for each in self.scores if each.latents == latents]

    def mean(self, measure: str, latents: int, less: "Probed | None" = None) -> Estimate | None:
        """Mean over tasks, or mean difference from another on the same tasks; None if not probed.

        The interval is from a bootstrap over tasks.
        """
        own = self.of_tasks(measure, latents)
        others = less.of_tasks(measure, latents) if less else [0.0] * len(own)
        if not own or not others:
            return None
        values = torch.tensor(own, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)
        return estimate_of(values[resampled(len(own))].mean(1))


def _columns(measure: str, less: Probed | None = None) -> list[Column[Probed]]:
    """Columns of a table: means of a measure, or mean differences, by number of latents."""

    def mean(number: int) -> Column[Probed]:
        return Column(HEADS[number], form=".3f", value=lambda p: p.mean(measure, number, less))

    return [
        Column("probes read", value=lambda probed: probed.name),
        Column("bits", form=".0f", value=lambda probed: probed.bits),
        *map(mean, HEADS),
    ]


COLUMNS = _columns("auc")


def probe_page(found: list[Probed], config: ProbeConfig) -> Analysis:
    """Make the page: its tables, plots and remarks."""
    coders = [each for each in found if each.form != STATES]
    plots = {
        f"AUC of {HEADS[number]}, by bits a token": curves(
            {each.name: [(each.bits, each.mean("auc", number))] for each in coders},
            "bits a token",
            "AUC, mean over tasks",
        )
        for number in (1, PLOTTED)
    }
    plots["AUC by number of latents"] = curves(
        {each.name: [(number, each.mean("auc", number)) for number in LATENTS] for each in coders},
        "latents",
        "AUC, mean over tasks",
    ).update_xaxes(type="log")
    tasks = len({score.task for each in found for score in each.scores})
    results = [
        {"coder": each.coder, "form": each.form, "bits": each.bits}
        | {
            measure: {HEADS[number]: each.mean(measure, number) for number in HEADS}
            for measure in ("auc", "accuracy")
        }
        | {"tasks": [vars(score) for score in each.scores]}
        for each in found
    ]
    analysis = analysis_of(__file__, COLUMNS, found, plots, {"probed": results}, tasks=tasks)
    (auc,) = analysis.tables
    first, *others = coders
    more = [(f"Accuracy, mean of {tasks} tasks", _columns("accuracy"), found)]
    if others:
        title = f"AUC less that of {first.name}, on the same tasks"
        more.append((title, _columns("auc", first), others))
    meanings = {column.label: column.meaning for column in auc.columns}
    tables = [
        table_of(title, with_meanings(columns, meanings), rows) for title, columns, rows in more
    ]
    return replace(analysis, tables=[auc, *tables])
