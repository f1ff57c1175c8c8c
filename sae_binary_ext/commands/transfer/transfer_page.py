"""The page of `sae-binary transfer`: its columns, remarks and plots."""

from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.transfer.config import TransferConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.intervals import Estimate
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import curves, grouped

REMARKS = (
    "A coder is trained at one layer, its home. Here it encodes activations of the same hook at "
    "other layers. FVU is squared error over the total variance of the layer. Scaled: activations "
    "are first multiplied so that their mean norm is that of the home layer, because residual "
    "streams grow with depth. Refitted: the decoder is replaced by the one of least squared error "
    "at that layer, fitted to every other document. All figures are of the documents in between. "
    "A FVU above 1 is worse than no coder.",
    "Shift says how far the latents' firing rates are from those at home: the Jensen-Shannon "
    "divergence of each latent's 0/1 code between both layers, in bits, summed over latents. It is "
    "0 if all rates are the same. Latents with the same rates may still fire on other tokens. A "
    "low refitted FVU says that the codes hold much of the layer's activations. It does not say "
    "that the layer has the features of the home layer.",
    "Brackets: 95% of bootstrap replicates over documents. Decoders of coders with values are not "
    "refitted: the solution is for codes of 0 and 1.",
)


@dataclass(frozen=True)
class Transferred:
    """A coder at a layer.

    Attributes:
        candidate: the coder.
        layer: where it was applied.
        at_home: whether that is its own layer.
        figures: with the coder unchanged.
        scaled_fvu: FVU of scaled activations; None for transcoders.
        refitted_fvu: FVU with the decoder refitted; None for coders with values.
        shift: of the firing rates from those at home, in bits a token.
    """

    candidate: Candidate
    layer: int
    at_home: bool
    figures: CoderFigures
    scaled_fvu: Estimate | None
    refitted_fvu: Estimate | None
    shift: float

    @property
    def fvu(self) -> Estimate:
        """FVU with the coder unchanged."""
        return self.figures.fvu


COLUMNS: tuple[Column[Transferred], ...] = (
    Column("coder", value=lambda t: t.candidate.name, key="name"),
    Column("layer", "* marks the coder's own layer.", "", lambda t: f"{t.layer}{' *' * t.at_home}"),
    Column("", key="layer"),
    Column("", key="at_home"),
    Column("", value=lambda t: t.figures.tokens, key="tokens"),
    Column("FVU", "FVU with the coder unchanged.", ".3f", key="fvu"),
    Column(
        "scaled", "FVU of activations scaled to the mean norm at home.", ".3f", key="scaled_fvu"
    ),
    Column(
        "refitted",
        "FVU with a decoder fitted to other documents of the layer.",
        ".3f",
        key="refitted_fvu",
    ),
    Column("L0", "Mean active latents per token.", ".1f", lambda t: t.figures.l0, "l0"),
    Column(
        "dead",
        "Latents that never fired.",
        "d",
        lambda t: int((t.figures.rates == 0).sum()),
        "dead",
    ),
    Column(
        "entropy",
        "Sum of the entropies of the latents' firing rates, in bits per token.",
        ".1f",
        lambda t: t.figures.entropy_bits,
        "entropy_bits",
    ),
    Column(
        "shift",
        "Divergence from the firing rates at home, in bits per token.",
        ".2f",
        lambda t: t.shift,
        "shift_bits",
    ),
)


def transfer_page(found: list[Transferred], config: TransferConfig) -> Analysis:
    """Table, plots and remarks."""
    return Analysis(
        "transfer",
        "Coders at other layers",
        REMARKS,
        [table_of("By layer", COLUMNS, found)],
        {"FVU": _fvu(found), "Shift of the firing rates": _shifts(found)},
        {"coders": described(COLUMNS, found)},
    )


def _fvu(found: list[Transferred]) -> go.Figure:
    kinds = {"as it is": "fvu", "scaled": "scaled_fvu", "refitted": "refitted_fvu"}
    points: dict[str, list[tuple[int, float | None]]] = {}
    for name, own in grouped(found, lambda each: each.candidate.name).items():
        for kind, attribute in kinds.items():
            estimates: list[Estimate | None] = [getattr(each, attribute) for each in own]
            points[f"{name}, {kind}"] = [
                (each.layer, fvu and fvu.value) for each, fvu in zip(own, estimates, strict=True)
            ]
    return curves(points, "layer", "FVU").update_yaxes(type="log", dtick="D2")


def _shifts(found: list[Transferred]) -> go.Figure:
    by_coder = grouped(found, lambda each: each.candidate.name)
    points = {name: [(each.layer, each.shift) for each in own] for name, own in by_coder.items()}
    return curves(points, "layer", "bits a token").update_yaxes(rangemode="tozero")
