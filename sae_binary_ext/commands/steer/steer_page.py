"""The page of `sae-binary steer` for one prompt: the text before and after, and what changed."""

from dataclasses import dataclass, field, replace

from sae_binary_ext.commands.steer.config import SteerConfig
from sae_binary_ext.report import Analysis, Column, analysis_of, described, table_of
from sae_binary_ext.report.plots import curves


@dataclass(frozen=True)
class ChangedLatent:
    """A latent that steering changes.

    fires, changed: share of the tokens on which it fires in the unsteered model, and on which
    steering changes it. Tokens before first_position do not count.
    """

    latent: int
    operation: str
    fires: float
    changed: float


@dataclass(frozen=True)
class Generated:
    """A continuation of the prompt.

    Attributes:
        model: "as it is" or "steered".
        likeliest: the likeliest tokens after the prompt, with their probabilities.
        moved: KL of the next token from the unsteered model, in nats: after the prompt, and after
            each token of the unsteered continuation. Empty for the unsteered model.
    """

    model: str
    text: str
    likeliest: list[tuple[str, float]]
    moved: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """Mean KL over the continuation."""
        return sum(self.moved) / len(self.moved) if self.moved else None


@dataclass(frozen=True)
class SteeredText:
    """A prompt of some tokens, its two continuations, and the latents that change."""

    prompt: str
    tokens: int
    before: Generated
    after: Generated
    latents: list[ChangedLatent]


def _likeliest(generated: Generated) -> str:
    return ", ".join(f"{text!r} {share:.2f}" for text, share in generated.likeliest)


COLUMNS: tuple[Column[Generated], ...] = (
    Column("model", key="model"),
    Column("KL, next token", form=".3f", value=lambda g: next(iter(g.moved), None), key="kl_next"),
    Column("KL, continuation", form=".3f", value=lambda g: g.mean, key="kl_continuation"),
    Column("likeliest next tokens", value=_likeliest),
    Column("text", value=lambda g: repr(g.text)),
    Column("", key="text"),
    Column("", value=lambda g: [list(each) for each in g.likeliest], key="likeliest"),
    Column("", key="moved"),
)
LATENT_COLUMNS: tuple[Column[ChangedLatent], ...] = (
    Column("latent", "Number of the latent.", "d", key="latent"),
    Column("operation", "What is done to it.", key="operation"),
    Column(
        "fires",
        "Share of the tokens of prompt and unsteered continuation on which it fires by itself.",
        ".0%",
        key="fires",
    ),
    Column("changed", "Share of these tokens on which steering changes it.", ".0%", key="changed"),
)


def steer_page(found: SteeredText, config: SteerConfig) -> Analysis:
    """Make the page: its tables, plot and remarks."""
    both = [found.before, found.after]
    points = list(enumerate(found.after.moved, found.tokens - 1))
    plot = curves({"steered": points}, "position in the unsteered text", "KL in nats")
    latents = described(LATENT_COLUMNS, found.latents)
    results = {"prompt": found.prompt, "texts": described(COLUMNS, both), "latents": latents}
    plots = {"KL of the next token from the unsteered model": plot}
    analysis = analysis_of(__file__, COLUMNS, both, plots, results, prompt=found.prompt)
    changes = table_of("Latents that steering changes", LATENT_COLUMNS, found.latents)
    return replace(analysis, tables=[*analysis.tables, changes])
