"""The page of `sae-binary steer --measure`: what random latents do to the next token."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_binary_ext.commands.steer.config import SteerConfig
from sae_binary_ext.commands.steer.measuring import CHOOSING, MEASURED, MeasuredCoder, SteeredLatent
from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled
from sae_binary_ext.report import Analysis, Column, analysis_of, described, table_of
from sae_binary_ext.report.plots import curves, grouped

TEXTS = Path(__file__).with_name("measured.toml")
FIGURES = ("kl", "own", "own_of_others", "following", "following_of_others")


def means_of(scores: Sequence[SteeredLatent], figure: str) -> Tensor:
    """float64 [1 + REPLICATES]: mean of a figure over latents, then over each resampling of them.

    Latents of which the figure is NaN do not count.
    """
    values = torch.tensor([getattr(each, figure) for each in scores], dtype=torch.float64)
    return values[resampled(len(values))].nanmean(1)


@dataclass(frozen=True)
class SteeredSet:
    """Scores on the measured prompts of all latents of a coder, turned on in one way.

    how: the way, for tables. swept: whether it is a point of a curve, which has one for each
    factor.
    """

    coder: str
    how: str
    scores: list[SteeredLatent]
    swept: bool = False

    def mean(self, figure: str) -> Estimate:
        """Mean of a figure over latents, with an interval by resampling latents."""
        return estimate_of(means_of(self.scores, figure))

    @property
    def worth(self) -> Estimate:
        """Mean of `own` less KL, with its interval."""
        return estimate_of(means_of(self.scores, "own") - means_of(self.scores, "kl"))


@dataclass(frozen=True)
class AtEqualKl:
    """A binary coder beside a stock coder at the factor that has the same mean KL.

    own, following: rises of the binary coder less those of the stock coder.
    """

    coder: str
    other: str
    kl: Estimate
    own: Estimate
    following: Estimate


COLUMNS: tuple[Column[SteeredSet], ...] = (
    Column("coder", key="coder"),
    Column("turned on", key="how"),
    Column("latents", form="d", value=lambda s: len(s.scores), key="latents"),
    Column("KL", form=".3f", value=lambda s: s.mean("kl"), key="kl"),
    Column("own", form=".3f", value=lambda s: s.mean("own"), key="own"),
    Column("own, others", form=".3f", value=lambda s: s.mean("own_of_others"), key="own_of_others"),
    Column("following", form=".3f", value=lambda s: s.mean("following"), key="following"),
    Column(
        "following, others",
        form=".3f",
        value=lambda s: s.mean("following_of_others"),
        key="following_of_others",
    ),
    Column("own less KL", form=".3f", value=lambda s: s.worth, key="own_less_kl"),
)
EQUAL_COLUMNS: tuple[Column[AtEqualKl], ...] = (
    Column("coder", "A binary coder.", key="coder"),
    Column("less", "A stock coder, at the factor of the same mean KL.", key="other"),
    Column("KL", "Mean KL of both, in nats.", ".3f", key="kl"),
    Column(
        "own",
        "Difference of `own` of the two. nan if no factor of the sweep has this KL.",
        "+.3f",
        key="own",
    ),
    Column("following", "Difference of `following`.", "+.3f", key="following"),
)


def sets_of(coder: MeasuredCoder) -> list[SteeredSet]:
    """The ways in which latents of a coder were turned on, with their scores."""
    measured = [each for each in coder.scores if each.prompts == MEASURED]
    if coder.is_binary:
        return [SteeredSet(coder.coder, "on", measured, swept=True)]
    by_factor = grouped(measured, attrgetter("factor"))
    sets = [
        SteeredSet(coder.coder, f"x{factor:g}", scores, swept=True)
        for factor, scores in by_factor.items()
    ]
    chosen = [each for each in coder.scores if each.prompts == CHOOSING]
    worth = {
        factor: float(np.nanmean([each.own - each.kl for each in scores]))
        for factor, scores in grouped(chosen, attrgetter("factor")).items()
    }
    best = max(worth, key=worth.__getitem__)
    one = replace(sets[list(by_factor).index(best)], how=f"best for all, x{best:g}", swept=False)
    best_of_latent = {
        latent: max(scores, key=lambda each: each.own - each.kl).factor
        for latent, scores in grouped(chosen, attrgetter("latent")).items()
    }
    of_each = [each for each in measured if each.factor == best_of_latent[each.latent]]
    return [*sets, one, SteeredSet(coder.coder, "best for each latent", of_each)]


def at_equal_kl(binary: SteeredSet, stock: list[SteeredSet]) -> AtEqualKl:
    """A binary coder beside a stock coder's sweep, interpolated in the logarithm of KL."""
    kl = means_of(binary.scores, "kl")
    sweep = torch.stack([means_of(each.scores, "kl") for each in stock])

    def difference(figure: str) -> Estimate:
        rises = torch.stack([means_of(each.scores, figure) for each in stock])
        others = [
            _interpolated(float(at), sweep[:, draw], rises[:, draw]) for draw, at in enumerate(kl)
        ]
        return estimate_of(means_of(binary.scores, figure) - torch.tensor(others).double())

    found = difference("own"), difference("following")
    return AtEqualKl(binary.coder, stock[0].coder, estimate_of(kl), *found)


def _interpolated(at: float, kl: Tensor, rises: Tensor) -> float:
    order = kl.argsort()
    known = kl[order].log().numpy(), rises[order].numpy()
    return float(np.interp(np.log(at), *known, left=np.nan, right=np.nan))


def measured_page(found: list[MeasuredCoder], config: SteerConfig) -> Analysis:
    """Make the page: its tables, plots and remarks."""
    sets = {coder.coder: sets_of(coder) for coder in found}
    stock = [coder.coder for coder in found if not coder.is_binary]
    equal = [
        at_equal_kl(sets[coder.coder][0], _swept(sets[other]))
        for coder in found
        if coder.is_binary
        for other in stock
    ]
    everything = [each for of_coder in sets.values() for each in of_coder]
    plots = {
        f"Rise of {name}, by KL": curves(
            {name: _points(of_coder, figure) for name, of_coder in sets.items()},
            "KL in nats, mean over latents",
            "rise of the log probability, in nats",
        ).update_xaxes(type="log")
        for figure, name in (("own", "a latent's own tokens"), ("following", "the tokens after"))
    }
    plots["Each latent: rise of its own tokens, by KL"] = curves(
        {
            f"{each.coder}, {each.how}": [(s.kl, s.own, s.latent) for s in each.scores]
            for of_coder in sets.values()
            for each in of_coder[-1:]
        },
        "KL in nats",
        "rise of the log probability, in nats",
        mode="markers",
    ).update_xaxes(type="log")
    results = {
        "coders": described(COLUMNS, everything),
        "at_equal_kl": described(EQUAL_COLUMNS, equal),
        "latents": list(_latents(found)),
    }
    analysis = analysis_of(TEXTS, COLUMNS, everything, plots, results)
    tables = [table_of("At equal KL", EQUAL_COLUMNS, equal)] if equal else []
    return replace(analysis, tables=[*analysis.tables, *tables])


def _points(sets: list[SteeredSet], figure: str) -> list[tuple[float, Estimate, str]]:
    """Points of a curve: means of KL and of a figure, by factor."""
    return [(each.mean("kl").value, each.mean(figure), each.how) for each in _swept(sets)]


def _swept(sets: list[SteeredSet]) -> list[SteeredSet]:
    return [each for each in sets if each.swept]


def _latents(found: list[MeasuredCoder]) -> Iterator[dict[str, object]]:
    """All scores, each with its coder's name and its latent's own tokens."""
    for coder in found:
        for each in coder.scores:
            own = coder.names.get(each.latent, [])
            yield {"coder": coder.coder, **asdict(each), "own_tokens": own}
