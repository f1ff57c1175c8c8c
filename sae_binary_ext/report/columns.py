"""The figures of a comparison: label, meaning, format and key of each."""

from collections.abc import Callable

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.intervals import Estimate
from sae_binary_ext.measure.predictability import STRATA
from sae_binary_ext.report.tables import Column

DENSE_RATE, ULTRA_HIGH_RATE = 0.1, 0.5
# Above this cosine two decoder rows count as similar; above this correlation two latents count as
# firing together.
SIMILAR_COSINE, DUPLICATE_CORRELATION = 0.9, 0.9
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Figure = Estimate | float | int
Figures = tuple[Column[ComparedCoder], ...]


def _above(rate: float) -> Callable[[ComparedCoder], int]:
    return lambda coder: int((coder.figures.rates > rate).sum())


def _explained(coder: ComparedCoder) -> Estimate:
    fvu = coder.figures.fvu
    return Estimate(1 - fvu.value, 1 - fvu.high, 1 - fvu.low)


def _rate_quantile(share: float) -> Column[ComparedCoder]:
    def value(coder: ComparedCoder) -> float:
        rates = coder.figures.rates
        alive = rates[rates > 0]
        return alive.quantile(share).item() if len(alive) else float("nan")

    return Column(
        "",
        f"Firing rate below which {share:.0%} of the latents lie, dead latents left out.",
        ".2e",
        value,
        f"rate_quantile_{round(share * 100)}",
    )


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


def _similar(coder: ComparedCoder) -> int:
    return int((coder.figures.neighbour_cosines > SIMILAR_COSINE).sum())


def _duplicates(coder: ComparedCoder) -> int:
    figures = coder.figures
    similar = figures.neighbour_cosines > SIMILAR_COSINE
    together = figures.neighbour_correlations > DUPLICATE_CORRELATION
    return int((similar & together).sum())


_RECONSTRUCTION: Figures = (
    Column("latents", "Width of the code.", "d", lambda c: c.figures.latents, "latents"),
    Column(
        "FVU",
        "Squared error over total variance, both summed over tokens and dimensions.",
        ".3f",
        lambda c: c.figures.fvu,
        "fvu",
    ),
    Column("", "1 - FVU, as SAELens' explained_variance.", ".3f", _explained, "explained_variance"),
    Column(
        "cosine",
        "Cosine of output and target, mean over tokens.",
        ".3f",
        lambda c: c.figures.cosine,
        "cosine",
    ),
)
_LOSSES: Figures = (
    Column(
        "",
        "Cross-entropy of the untouched model, in nats per predicted token.",
        ".3f",
        lambda c: c.losses.clean,
        "cross_entropy_clean",
    ),
    Column(
        "",
        "Cross-entropy with the coder's output in place of the activation, in nats.",
        ".3f",
        lambda c: c.losses.spliced,
        "cross_entropy_spliced",
    ),
    Column(
        "",
        "Cross-entropy with zeros in place of the activation, in nats.",
        ".3f",
        lambda c: c.losses.zero_ablated,
        "cross_entropy_zero_ablated",
    ),
    Column(
        "",
        "Cross-entropy with the mean activation in place of the activation, in nats.",
        ".3f",
        lambda c: c.losses.mean_ablated,
        "cross_entropy_mean_ablated",
    ),
    Column(
        "CE recovered",
        "Share of the loss between zero ablation and the clean model that splicing keeps.",
        ".1%",
        lambda c: c.losses.recovered_of_zero,
        "recovered_of_zero_ablation",
    ),
    Column(
        "of mean ablation",
        "Share of the loss between mean ablation and the clean model that splicing keeps.",
        ".1%",
        lambda c: c.losses.recovered_of_mean,
        "recovered_of_mean_ablation",
    ),
    Column(
        "KL",
        "KL divergence of the spliced model's predictions from the clean model's, in nats per "
        "predicted token.",
        ".3f",
        lambda c: c.losses.divergence,
        "kl_divergence",
    ),
)
_FIRING: Figures = (
    Column("L0", "Mean active latents per token.", ".1f", lambda c: c.figures.l0, "l0"),
    Column(
        "±",
        "Standard deviation over tokens of the number of active latents.",
        ".1f",
        lambda c: c.figures.l0_deviation,
        "l0_deviation",
    ),
    Column(
        "dead",
        "Latents active on none of the tokens.",
        "d",
        lambda c: int((c.figures.rates == 0).sum()),
        "dead",
    ),
    Column(
        "dense",
        f"Latents active on more than {DENSE_RATE:.0%} of the tokens.",
        "d",
        _above(DENSE_RATE),
        "dense",
    ),
    Column(
        "ultra-high",
        f"Latents active on more than {ULTRA_HIGH_RATE:.0%} of the tokens.",
        "d",
        _above(ULTRA_HIGH_RATE),
        "ultra_high_frequency",
    ),
    Column(
        "entropy, bits",
        "Entropy of the firing rates in bits per token, as if latents were independent.",
        ".0f",
        lambda c: c.figures.entropy_bits,
        "entropy_bits",
    ),
    Column(
        "bits a token",
        "The entropy, plus 8 bits for each active latent of a coder with values.",
        ".0f",
        lambda c: c.figures.bits,
        "bits",
    ),
    *map(_rate_quantile, QUANTILES),
)
_LATENTS: Figures = (
    Column(
        "",
        "Cosine of a decoder row with the row most like it, median over latents.",
        ".3f",
        lambda c: c.figures.neighbour_cosines.median().item(),
        "neighbour_cosine_median",
    ),
    Column(
        "similar",
        f"Latents whose decoder row has a cosine above {SIMILAR_COSINE} with another row.",
        "d",
        _similar,
        "similar",
    ),
    Column(
        "duplicates",
        "Similar latents that also fire together: their firing and that of the latent with the "
        f"most similar row have a correlation above {DUPLICATE_CORRELATION}.",
        "d",
        _duplicates,
        "duplicates",
    ),
    *map(_predictable, STRATA),
    Column(
        "encode, tokens/s",
        "Speed of encode alone, on the machine of the run.",
        ",.0f",
        lambda c: c.figures.tokens_per_second,
        "tokens_per_second",
    ),
)
COLUMNS: Figures = (*_RECONSTRUCTION, *_LOSSES, *_FIRING, *_LATENTS)
NAME: Column[ComparedCoder] = Column("coder", value=lambda coder: coder.candidate.name)
