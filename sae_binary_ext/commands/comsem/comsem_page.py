"""The page of `sae-binary comsem`: what it shows of each coder and latent."""

from dataclasses import asdict
from pathlib import Path
from random import Random

import plotly.graph_objects as go

from sae_binary_ext.commands.comsem.comsem_scores import ComsemFigures, ComsemScore, figures_of
from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import bars, grouped

TEXTS = Path(__file__).with_name("page.toml")
COLUMNS: tuple[Column[ComsemFigures], ...] = (
    Column("coder", key="coder"),
    Column("drawn", form="d", key="drawn"),
    Column("scored", form="d", key="scored"),
    Column("interpretable", form=".0%", key="interpretable"),
    Column("told apart", form=".0%", key="told_apart"),
    Column("fitting", form=".2f", key="fitting"),
    Column("others fitting", form=".2f", key="others_fitting"),
    Column("failed", form="d", key="failed"),
)


def comsem_page(scores: list[ComsemScore], config: ComsemConfig) -> Analysis:
    """Table, plots and remarks."""
    found = figures_of(scores, config.interpretable_at)
    judge = config.judge_model or f"embedding, {EMBEDDING_MODEL}"
    shares = {
        each.coder: {"interpretable": each.interpretable, "told apart": each.told_apart}
        for each in found
    }
    return analysis_of(
        TEXTS,
        COLUMNS,
        found,
        {
            "Own tokens and others": _scatter(scores),
            "Share of latents": bars(shares, "share of the latents drawn").update_yaxes(
                range=[0, 1]
            ),
        },
        {
            "judge": judge,
            "coders": described(COLUMNS, found),
            "latents": [asdict(each) for each in scores],
        },
        judge=judge,
    )


def _scatter(scores: list[ComsemScore]) -> go.Figure:
    """One point for each latent, moved a little, because shares of eight tokens often coincide."""
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
