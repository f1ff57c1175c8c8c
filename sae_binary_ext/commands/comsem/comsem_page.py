"""The page of `sae-binary comsem`: its figures of each coder, table and plot."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random

import plotly.graph_objects as go

from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.comsem.judging import ComsemScore
from sae_binary_ext.commands.interpret.interpret_scores import mean_over_latents
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import bars, grouped

TEXTS = Path(__file__).with_name("page.toml")


@dataclass(frozen=True)
class ComsemFigures:
    """Figures of one coder; page.toml explains each of them."""

    coder: str
    drawn: int
    scored: int
    interpretable: Estimate
    told_apart: Estimate
    fitting: Estimate
    others_fitting: Estimate
    failed: int


# Number formats of the columns that are not counts.
FORMS = {
    "coder": "",
    "interpretable": ".0%",
    "told_apart": ".0%",
    "fitting": ".2f",
    "others_fitting": ".2f",
}
COLUMNS: tuple[Column[ComsemFigures], ...] = tuple(
    Column(field.name.replace("_", " "), form=FORMS.get(field.name, "d"), key=field.name)
    for field in fields(ComsemFigures)
)


def figures_of(scores: Iterable[ComsemScore], at: float) -> list[ComsemFigures]:
    """Figures of each coder, with intervals over latents.

    A latent counts as interpretable if its phrase fits at least the share `at` of its own tokens.
    """

    def mean(group: list[ComsemScore], of: Callable[[ComsemScore], float | None]) -> Estimate:
        return mean_over_latents((of(score), 1.0) for score in group)

    return [
        ComsemFigures(
            coder,
            len(group),
            sum(score.fitting is not None for score in group),
            mean(group, lambda score: score.interpretable(at)),
            mean(group, lambda score: score.told_apart(at)),
            mean(group, lambda score: score.fitting),
            mean(group, lambda score: score.others_fitting),
            sum(score.failed for score in group),
        )
        for coder, group in grouped(scores, lambda score: score.coder).items()
    ]


def comsem_page(scores: list[ComsemScore], config: ComsemConfig) -> Analysis:
    """Make the page: its table, plots and remarks."""
    found = figures_of(scores, config.interpretable_at)
    judge = config.judge_model or f"embedding, {EMBEDDING_MODEL}"
    shares = {
        each.coder: {"interpretable": each.interpretable, "told apart": each.told_apart}
        for each in found
    }
    share_bars = bars(shares, "share of the latents drawn").update_yaxes(range=[0, 1])
    results = {
        "judge": judge,
        "coders": described(COLUMNS, found),
        "latents": [asdict(each) for each in scores],
    }
    plots = {"Own tokens and others": _scatter(scores), "Share of latents": share_bars}
    return analysis_of(TEXTS, COLUMNS, found, plots, results, judge=judge)


def _scatter(scores: list[ComsemScore]) -> go.Figure:
    """One point for each latent; points are moved a little, because shares often coincide."""
    figure, random = go.Figure(), Random(0)

    def moved(share: float | None) -> float | None:
        return None if share is None else share + random.uniform(-0.04, 0.04)

    for coder, of_coder in grouped(scores, lambda score: score.coder).items():
        own = [each for each in of_coder if each.fitting is not None]
        figure.add_scatter(
            x=[moved(each.others_fitting) for each in own],
            y=[moved(each.fitting) for each in own],
            text=[f"latent {each.latent}: {each.phrase or ''}" for each in own],
            mode="markers",
            opacity=0.6,
            name=coder,
        )
    figure.update_xaxes(title="share of other tokens that fit", range=[-0.05, 1.05])
    return figure.update_yaxes(title="share of own tokens that fit", range=[-0.05, 1.05])
