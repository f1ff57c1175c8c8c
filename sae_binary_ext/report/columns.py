"""Columns of a comparison. columns.toml has a sentence that explains each."""

import tomllib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.samples import STRATA
from sae_binary_ext.report.tables import Column, with_meanings

DENSE_RATE, ULTRA_HIGH_RATE = 0.1, 0.5
# Above this cosine two decoder rows count as similar; above this correlation two latents count as
# firing together.
SIMILAR_COSINE, DUPLICATE_CORRELATION = 0.9, 0.9
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MEANINGS = Path(__file__).with_name("columns.toml")


def _firing_above(rate: float) -> Callable[[ComparedCoder], int]:
    return lambda coder: int((coder.figures.rates > rate).sum())


def _explained(coder: ComparedCoder) -> Estimate:
    fvu = coder.figures.fvu
    return Estimate(1 - fvu.value, 1 - fvu.high, 1 - fvu.low)


def _rate_quantile(share: float) -> Column[ComparedCoder]:
    def value(coder: ComparedCoder) -> float:
        rates = coder.figures.rates
        alive = rates[rates > 0]
        return alive.quantile(share).item() if len(alive) else float("nan")

    meaning = f"Firing rate below which {share:.0%} of the latents lie, dead latents left out."
    return Column("", meaning, ".2e", value, f"rate_quantile_{round(share * 100)}")


def _predictable(stratum: str) -> Column[ComparedCoder]:
    firings = "its firings" if stratum == "all" else f"the third of its firings of {stratum} value"
    return Column(
        "predictable" if stratum == "all" else "",
        f"How well the token and its neighbours tell {firings} from silence, by counts from other "
        "documents: area under the ROC curve (chance 0.5). Median over the sampled latents, "
        "interval over latents.",
        ".2f",
        lambda coder: coder.predictability.estimate(stratum),
        f"predictable_{stratum}",
    )


def _similar(coder: ComparedCoder) -> Tensor:
    return coder.figures.neighbour_cosines > SIMILAR_COSINE


def _duplicate(coder: ComparedCoder) -> Tensor:
    return _similar(coder) & (coder.figures.neighbour_correlations > DUPLICATE_CORRELATION)


_UNEXPLAINED: tuple[Column[ComparedCoder], ...] = (
    Column("latents", form="d", value=lambda c: c.figures.latents, key="latents"),
    Column("FVU", form=".3f", value=lambda c: c.figures.fvu, key="fvu"),
    Column("", value=_explained, key="explained_variance"),
    Column("cosine", form=".3f", value=lambda c: c.figures.cosine, key="cosine"),
    Column("", value=lambda c: c.losses.clean, key="cross_entropy_clean"),
    Column("", value=lambda c: c.losses.spliced, key="cross_entropy_spliced"),
    Column("", value=lambda c: c.losses.zero_ablated, key="cross_entropy_zero_ablated"),
    Column("", value=lambda c: c.losses.mean_ablated, key="cross_entropy_mean_ablated"),
    Column(
        "CE recovered",
        form=".1%",
        value=lambda c: c.losses.recovered_of_zero,
        key="recovered_of_zero_ablation",
    ),
    Column(
        "of mean ablation",
        form=".1%",
        value=lambda c: c.losses.recovered_of_mean,
        key="recovered_of_mean_ablation",
    ),
    Column("KL", form=".3f", value=lambda c: c.losses.divergence, key="kl_divergence"),
    Column("L0", form=".1f", value=lambda c: c.figures.l0, key="l0"),
    Column("±", form=".1f", value=lambda c: c.figures.l0_deviation, key="l0_deviation"),
    Column("dead", form="d", value=lambda c: int((c.figures.rates == 0).sum()), key="dead"),
    Column("dense", form="d", value=_firing_above(DENSE_RATE), key="dense"),
    Column(
        "ultra-high", form="d", value=_firing_above(ULTRA_HIGH_RATE), key="ultra_high_frequency"
    ),
    Column("entropy, bits", form=".0f", value=lambda c: c.figures.entropy_bits, key="entropy_bits"),
    Column("bits a token", form=".0f", value=lambda c: c.figures.bits, key="bits"),
    *map(_rate_quantile, QUANTILES),
    Column(
        "",
        value=lambda c: c.figures.neighbour_cosines.median().item(),
        key="neighbour_cosine_median",
    ),
    Column("similar", form="d", value=lambda c: int(_similar(c).sum()), key="similar"),
    Column("duplicates", form="d", value=lambda c: int(_duplicate(c).sum()), key="duplicates"),
    *map(_predictable, STRATA),
    Column(
        "encode, tokens/s",
        form=",.0f",
        value=lambda c: c.figures.tokens_per_second,
        key="tokens_per_second",
    ),
)
COLUMNS = with_meanings(_UNEXPLAINED, tomllib.loads(MEANINGS.read_text(encoding="utf-8")))
NAME: Column[ComparedCoder] = Column("coder", value=lambda coder: coder.candidate.name)
