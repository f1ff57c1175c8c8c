"""The figures of a comparison, each once: its key, its label, and how a table shows it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.samples import STRATA

DENSE_RATE, ULTRA_HIGH_RATE = 0.1, 0.5
# Decoder rows of a larger cosine point the same way; latents of a larger correlation fire together.
SIMILAR_COSINE, DUPLICATE_CORRELATION = 0.9, 0.9
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Figure = Estimate | float | int


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        key: in metrics.json and CSV.
        label: in tables; empty where they leave it out.
        value: of a coder.
        form: how a number is shown.
        meaning: in a sentence, with its unit.
    """

    key: str
    label: str
    value: Callable[[ComparedCoder], Figure]
    form: str
    meaning: str


def _above(rate: float) -> Callable[[ComparedCoder], int]:
    return lambda coder: int((coder.figures.rates > rate).sum())


def _explained(coder: ComparedCoder) -> Estimate:
    fvu = coder.figures.fvu
    return Estimate(1 - fvu.value, 1 - fvu.high, 1 - fvu.low)


def _rate_quantile(share: float) -> Column:
    def value(coder: ComparedCoder) -> float:
        rates = coder.figures.rates
        alive = rates[rates > 0]
        return alive.quantile(share).item() if len(alive) else float("nan")

    return Column(
        f"rate_quantile_{round(share * 100)}",
        "",
        value,
        ".2e",
        f"Firing rate that {share:.0%} of the latents which fired at all are below.",
    )


def _predictable(stratum: str) -> Column:
    firings = "its firings" if stratum == "all" else f"the third of its firings of {stratum} value"
    return Column(
        f"predictable_{stratum}",
        "predictable" if stratum == "all" else "",
        lambda c: c.predictability.estimate(stratum),
        ".2f",
        f"How well {firings} are told from silence by the token and those beside it, counted in "
        "other documents: area under the ROC curve (chance 0.5), median over the sampled latents, "
        "interval over latents.",
    )


def _duplicates(figures: CoderFigures) -> int:
    similar = figures.neighbour_cosines > SIMILAR_COSINE
    together = figures.neighbour_correlations > DUPLICATE_CORRELATION
    return int((similar & together).sum())


COLUMNS = (
    Column("latents", "latents", lambda c: c.figures.latents, "d", "Width of the code."),
    Column(
        "fvu",
        "FVU",
        lambda c: c.figures.fvu,
        ".3f",
        "Squared error over total variance, both summed over tokens and dimensions.",
    ),
    Column("explained_variance", "", _explained, ".3f", "1 - FVU, as SAELens' explained_variance."),
    Column("cosine", "cosine", lambda c: c.figures.cosine, ".3f", "Of output and target, mean."),
    Column(
        "cross_entropy_clean",
        "",
        lambda c: c.losses.clean,
        ".3f",
        "Of the untouched model, in nats a predicted token.",
    ),
    Column(
        "cross_entropy_spliced",
        "",
        lambda c: c.losses.spliced,
        ".3f",
        "With the coder's output in the activation's place.",
    ),
    Column(
        "cross_entropy_zero_ablated",
        "",
        lambda c: c.losses.zero_ablated,
        ".3f",
        "With zeros in the activation's place.",
    ),
    Column(
        "cross_entropy_mean_ablated",
        "",
        lambda c: c.losses.mean_ablated,
        ".3f",
        "With the mean activation in its place.",
    ),
    Column(
        "recovered_of_zero_ablation",
        "CE recovered",
        lambda c: c.losses.recovered_of_zero,
        ".1%",
        "Share of the loss between zero ablation and the clean model that splicing keeps.",
    ),
    Column(
        "recovered_of_mean_ablation",
        "of mean ablation",
        lambda c: c.losses.recovered_of_mean,
        ".1%",
        "The same between mean ablation and the clean model.",
    ),
    Column(
        "kl_divergence",
        "KL",
        lambda c: c.losses.divergence,
        ".3f",
        "Of the spliced model's predictions from the clean one's, in nats a predicted token.",
    ),
    Column("l0", "L0", lambda c: c.figures.l0, ".1f", "Active latents a token, mean."),
    Column(
        "l0_deviation",
        "±",
        lambda c: c.figures.l0_deviation,
        ".1f",
        "Standard deviation of a token's active latents.",
    ),
    Column(
        "dead",
        "dead",
        lambda c: int((c.figures.rates == 0).sum()),
        "d",
        "Latents active on none of the tokens.",
    ),
    Column(
        "dense",
        "dense",
        _above(DENSE_RATE),
        "d",
        f"Latents active on more than {DENSE_RATE:.0%} of the tokens.",
    ),
    Column(
        "ultra_high_frequency",
        "ultra-high",
        _above(ULTRA_HIGH_RATE),
        "d",
        f"Latents active on more than {ULTRA_HIGH_RATE:.0%} of the tokens.",
    ),
    Column(
        "entropy_bits",
        "entropy, bits",
        lambda c: c.figures.entropy_bits,
        ".0f",
        "Entropy of the firing rates, latents taken as independent, in bits a token.",
    ),
    Column(
        "bits",
        "bits a token",
        lambda c: c.figures.bits,
        ".0f",
        "The entropy and, for coders with values, 8 bits for each active latent.",
    ),
    *(_rate_quantile(share) for share in QUANTILES),
    Column(
        "neighbour_cosine_median",
        "",
        lambda c: c.figures.neighbour_cosines.median().item(),
        ".3f",
        "Cosine of a decoder row with the one most like it, median over latents.",
    ),
    Column(
        "similar",
        "similar",
        lambda c: int((c.figures.neighbour_cosines > SIMILAR_COSINE).sum()),
        "d",
        f"Latents whose decoder row has a cosine above {SIMILAR_COSINE} with another's.",
    ),
    Column(
        "duplicates",
        "duplicates",
        lambda c: _duplicates(c.figures),
        "d",
        "Of these, latents whose firing has a correlation above "
        f"{DUPLICATE_CORRELATION} with that other one's.",
    ),
    *(_predictable(stratum) for stratum in STRATA),
    Column(
        "tokens_per_second",
        "encode, tokens/s",
        lambda c: c.figures.tokens_per_second,
        ",.0f",
        "Of encode alone, on the machine of the run.",
    ),
)
# Those that tables show.
TABLE = tuple(column for column in COLUMNS if column.label)


def shown(column: Column, coder: ComparedCoder) -> str:
    """A figure as a table shows it, with its interval where it has one."""
    value = column.value(coder)
    if not isinstance(value, Estimate):
        return format(value, column.form)
    text = format(value.value, column.form)
    if not torch.tensor([value.low, value.high]).isfinite().all():
        return text
    return f"{text} [{format(value.low, column.form)}, {format(value.high, column.form)}]"
