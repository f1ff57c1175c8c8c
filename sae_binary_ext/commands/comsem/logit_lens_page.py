"""The page of `sae-binary comsem --decode logit_lens`: its table and plot."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path

from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.comsem.logit_lens import FIGURES, NamedLatent
from sae_binary_ext.commands.interpret.interpret_scores import mean_over_latents
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import bars, grouped

TEXTS = Path(__file__).with_name("logit_lens.toml")


@dataclass(frozen=True)
class LensFigures:
    """Figures of one coder; logit_lens.toml explains each of them."""

    coder: str
    drawn: int
    scored: int
    own_by_read: Estimate
    own_by_written: Estimate
    next_by_read: Estimate
    next_by_written: Estimate
    written_ahead: Estimate


COLUMNS: tuple[Column[LensFigures], ...] = (
    Column("coder", key="coder"),
    Column("drawn", form="d", key="drawn"),
    Column("scored", form="d", key="scored"),
    *(Column(name.replace("_", " "), form=".3f", key=name) for name in FIGURES),
    Column("written ahead", form=".0%", key="written_ahead"),
)


def lens_figures(latents: list[NamedLatent]) -> list[LensFigures]:
    """Figures of each coder, with intervals over latents."""

    def mean(group: list[NamedLatent], of: Callable[[NamedLatent], float | None]) -> Estimate:
        return mean_over_latents((of(latent), 1.0) for latent in group)

    def ahead(latent: NamedLatent) -> float | None:
        written, read = latent.next_by_written, latent.own_by_read
        return None if written is None or read is None else float(written > read)

    found: list[LensFigures] = []
    for coder, group in grouped(latents, lambda latent: latent.coder).items():
        scored = sum(latent.own_by_read is not None for latent in group)
        means = {name: mean(group, attrgetter(name)) for name in FIGURES}
        found.append(
            LensFigures(coder, len(group), scored, **means, written_ahead=mean(group, ahead))
        )
    return found


def logit_lens_page(latents: list[NamedLatent], config: ComsemConfig) -> Analysis:
    """Make the page: its table, plot and remarks."""
    found = lens_figures(latents)
    shares = {
        each.coder: {name.replace("_", " "): getattr(each, name) for name in FIGURES}
        for each in found
    }
    results = {
        "coders": described(COLUMNS, found),
        "latents": [asdict(latent) for latent in latents],
    }
    plots = {"Tokens in a latent's name": bars(shares, "share of firings, above all tokens")}
    return analysis_of(TEXTS, COLUMNS, found, plots, results)
