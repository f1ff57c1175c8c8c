"""The page of `sae-binary ablate`: its columns, remarks and plots."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.measure.intervals import Estimate
from sae_binary_ext.measure.latent_groups import LatentGroup
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import bars, grouped

REMARKS = (
    "Latents are changed in the codes, the codes are decoded, and the output replaces the "
    "activation in the model. The table shows how far that raises the FVU of the output and the "
    "cross-entropy of the model, compared with all latents unchanged, on the same tokens. Each "
    "group has an equal share of all firings, as far as latents can be divided. Beside it stand as "
    "many random latents of other groups that fire about as often. In a ranking by rate or "
    "burstiness no other latents fire as often as a whole group: compare the shares of ones.",
    "Burstiness is log2 |h - rate| of a latent's rarer state. It holds no more information than "
    "the rate: rare latents and latents that are almost always active come first. Effect is the "
    "norm of the decoder row times the standard deviation of the code.",
    "If the loss does not rise without a latent, the latent may still matter: others may replace "
    "it. Groups tell more than single latents. Zero silences a latent. Flip also activates it "
    "where it was silent. For a rare latent that is on nearly every token, and a topk coder then "
    "has more than k active latents.",
    "Brackets: 95% of bootstrap replicates over documents.",
)


@dataclass(frozen=True)
class Rise:
    """How far a change raises error and loss.

    Attributes:
        ones: share of all firings that belong to the changed latents.
        fvu: rise of the FVU.
        loss: rise of the cross-entropy, in nats per prediction.
    """

    ones: float
    fvu: Estimate
    loss: Estimate


@dataclass(frozen=True)
class Ablated:
    """A group of latents, and the effect of changing it.

    Attributes:
        coder: its name.
        group: the latents.
        changed: rise with the group changed.
        random: rise with the random latents changed; None if there are none.
    """

    coder: str
    group: LatentGroup
    changed: Rise
    random: Rise | None


COLUMNS: tuple[Column[Ablated], ...] = (
    Column("coder", key="coder"),
    Column("changed", value=lambda a: a.group.name, key="changed"),
    Column("latents", "Number of latents changed.", "d", lambda a: len(a.group.latents)),
    Column("", value=lambda a: list[int](a.group.latents.tolist()), key="latents"),
    Column("", value=lambda a: list[int](a.group.others.tolist()), key="random_latents"),
    Column(
        "ones", "Share of all firings that these latents have.", ".1%", lambda a: a.changed.ones
    ),
    Column("FVU +", "Rise of the FVU.", ".4f", lambda a: a.changed.fvu),
    Column(
        "loss +",
        "Rise of the cross-entropy, in nats per prediction.",
        ".4f",
        lambda a: a.changed.loss,
    ),
    Column(
        "ones, random",
        "Share of all firings that the random latents have.",
        ".1%",
        lambda a: a.random and a.random.ones,
    ),
    Column(
        "FVU +, random",
        "Rise of the FVU with the random latents changed.",
        ".4f",
        lambda a: a.random and a.random.fvu,
    ),
    Column(
        "loss +, random",
        "Rise of the cross-entropy with the random latents changed, in nats per prediction.",
        ".4f",
        lambda a: a.random and a.random.loss,
    ),
    Column("", value=lambda a: vars(a.changed), key="rise"),
    Column("", value=lambda a: a.random and vars(a.random), key="rise_of_random"),
)


def ablate_page(found: list[Ablated], config: AblateConfig) -> Analysis:
    """Table, plots and remarks."""
    return Analysis(
        "ablate",
        f"Latents changed: {config.change}, by {config.ranking}",
        REMARKS,
        [table_of("What changes raise", COLUMNS, found)],
        {
            "Rise of the loss": _bars(found, "loss", "nats a prediction"),
            "Rise of the FVU": _bars(found, "fvu", "FVU"),
        },
        {"groups": described(COLUMNS, found)},
    )


def _bars(found: list[Ablated], figure: str, title: str) -> go.Figure:
    heights: dict[str, dict[str, Any]] = {}
    for coder, own in grouped(found, lambda each: each.coder).items():
        heights[coder] = {each.group.name: getattr(each.changed, figure) for each in own}
        heights[f"{coder}, random"] = {
            each.group.name: getattr(each.random, figure) for each in own if each.random
        }
    return bars(heights, title)
