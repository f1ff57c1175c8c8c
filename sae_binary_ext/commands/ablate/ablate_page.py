"""The page of `sae-binary ablate`: its table and plots."""

from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.latent_groups import LatentGroup
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import bars


@dataclass(frozen=True)
class Rise:
    """Rise of FVU and loss (nats per prediction); `ones` is the latents' share of firings."""

    ones: float
    fvu: Estimate
    loss: Estimate


@dataclass(frozen=True)
class Ablated:
    """A group of a coder's latents, the rise if they change, and the rise for random latents."""

    coder: str
    group: LatentGroup
    changed: Rise
    random: Rise | None


COLUMNS: tuple[Column[Ablated], ...] = (
    Column("coder", key="coder"),
    Column("changed", value=lambda a: a.group.name, key="changed"),
    Column("latents", form="d", value=lambda a: len(a.group.latents)),
    Column("", value=lambda a: list[int](a.group.latents.tolist()), key="latents"),
    Column("", value=lambda a: list[int](a.group.others.tolist()), key="random_latents"),
    Column("ones", form=".1%", value=lambda a: a.changed.ones),
    Column("FVU +", form=".4f", value=lambda a: a.changed.fvu),
    Column("loss +", form=".4f", value=lambda a: a.changed.loss),
    Column("ones, random", form=".1%", value=lambda a: a.random and a.random.ones),
    Column("FVU +, random", form=".4f", value=lambda a: a.random and a.random.fvu),
    Column("loss +, random", form=".4f", value=lambda a: a.random and a.random.loss),
    Column("", value=lambda a: vars(a.changed), key="rise"),
    Column("", value=lambda a: a.random and vars(a.random), key="rise_of_random"),
)


def ablate_page(found: list[Ablated], config: AblateConfig) -> Analysis:
    """Make the page: its table, plots and remarks."""

    def plot(figure: str, title: str) -> go.Figure:
        heights: dict[str, dict[str, Estimate]] = {}
        for each in found:
            for name, rise in ((each.coder, each.changed), (f"{each.coder}, random", each.random)):
                of_name = heights.setdefault(name, {})
                if rise:
                    of_name[each.group.name] = getattr(rise, figure)
        return bars(heights, title)

    plots = {
        "Rise of the loss": plot("loss", "nats a prediction"),
        "Rise of the FVU": plot("fvu", "FVU"),
    }
    texts = {"change": config.change, "ranking": config.ranking}
    return analysis_of(__file__, COLUMNS, found, plots, "groups", **texts)
