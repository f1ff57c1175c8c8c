"""`sae-binary transfer`: what a coder of one layer makes of the others."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.commands.transfer.config import TransferConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures, TokenBatch
from sae_binary_ext.measure.halves import Halves, figures_on, read_halves
from sae_binary_ext.measure.intervals import Estimate
from sae_binary_ext.measure.layers import layer_hooks, layer_of
from sae_binary_ext.measure.reading import open_coders, settings_of
from sae_binary_ext.measure.refit import refit_decoder
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.saelens.autoencoder import BinaryCoder

REMARKS = (
    "A coder trained at one layer, its home, encodes what other layers have at the same hook. FVU "
    "is squared error over the layer's own total variance; scaled, of activations multiplied to "
    "the mean norm that they have at home, for residual streams grow with depth; refitted, with "
    "the decoder of least squared error for its codes at that layer, fitted to every other "
    "document. All figures are of the documents in between. A FVU above 1 is worse than no coder.",
    "Shift is how far the latents' firing rates are from those at home: the Jensen-Shannon "
    "divergence of each latent's code there and here, in bits, summed over latents; 0 where all "
    "rates are the same. It is of rates alone: latents may fire as often and on other tokens. A "
    "low refitted FVU says that the codes tell much of the layer's activations, and not that its "
    "features are those of the home layer.",
    "Brackets: 95% of bootstrap replicates over documents. The decoder of a coder with values is "
    "not refitted: least squares for codes of 0 and 1 is not for values.",
)
COLUMNS = (
    Column("coder"),
    Column("layer", "* the coder's own."),
    Column("FVU", "With the coder as it is.", ".3f"),
    Column("scaled", "FVU, of activations with the mean norm of those at home.", ".3f"),
    Column("refitted", "FVU, with a decoder fitted to other documents of the layer.", ".3f"),
    Column("L0", "Mean active latents a token.", ".1f"),
    Column("dead", "Latents that never fired.", "d"),
    Column("entropy", "Bits a token: sum over latents of the entropy of their rates.", ".1f"),
    Column("shift", "Bits a token, from the firing rates at home.", ".2f"),
)


@dataclass(frozen=True)
class Transferred:
    """A coder at a layer.

    Attributes:
        candidate: the coder.
        layer: where it was applied.
        at_home: whether that is its own.
        figures: of the coder as it is.
        scaled_fvu: of scaled activations; None for transcoders.
        refitted_fvu: with the decoder refitted; None for coders with values.
        shift: of the firing rates, in bits a token.
    """

    candidate: Candidate
    layer: int
    at_home: bool
    figures: CoderFigures
    scaled_fvu: Estimate | None
    refitted_fvu: Estimate | None
    shift: float


def run_transfer(coders: list[str], config: TransferConfig) -> Analysis:
    """Apply coders to other layers; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: a hook that is of no layer, a layer that the model lacks, or a text of one
            document.
    """
    opened = open_coders(coders, config, config.output)
    places = {
        each.name: layer_hooks(
            opened.model, (each.site.hook_name, each.site.hook_name_out), config.layers
        )
        for each in opened.candidates
    }
    pairs = dict.fromkeys(pair for own in places.values() for pair in own.values())
    states = read_halves(opened, config, pairs)
    homes = {
        each.name: states[places[each.name][layer_of(each.site.hook_name)]]
        for each in opened.candidates
    }
    rates = {
        each.name: figures_on(each.coder, homes[each.name].measured).rates
        for each in opened.candidates
    }
    found = [
        transferred(candidate, layer, states[pair], homes[candidate.name], rates[candidate.name])
        for candidate, layer, pair in tqdm(
            [
                (candidate, layer, pair)
                for candidate in opened.candidates
                for layer, pair in places[candidate.name].items()
            ],
            "Layers",
            unit="layers",
        )
    ]
    analysis = Analysis(
        "transfer",
        "Coders at other layers",
        REMARKS,
        [Table("By layer", COLUMNS, [_row(each) for each in found])],
        {"FVU": _by_layer(found), "Shift of the firing rates": _shifts(found)},
        {"coders": [_described(each) for each in found]},
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def transferred(
    candidate: Candidate, layer: int, there: Halves, home: Halves, rates: Tensor
) -> Transferred:
    """What a coder makes of a layer.

    Args:
        candidate: the coder.
        layer: the number of that layer.
        there: its activations.
        home: those of the coder's own layer; there itself where it is that.
        rates: float64 [latents], of firing at home.
    """
    figures = figures_on(candidate.coder, there.measured)
    scaled = None
    if not candidate.is_transcoder:
        factor = home.mean_norm() / there.mean_norm()
        scaled = figures_on(
            candidate.coder, [_scaled(batch, factor) for batch in there.measured]
        ).fvu
    refitted = None
    if isinstance(candidate.coder, BinaryCoder):
        coder = copy.deepcopy(candidate.coder)
        refit_decoder(coder, there.to_fit(coder.W_dec.device))
        refitted = figures_on(coder, there.measured).fvu
    shift = firing_shift(rates, figures.rates)
    return Transferred(candidate, layer, there is home, figures, scaled, refitted, shift)


def firing_shift(home: Tensor, there: Tensor) -> float:
    """Jensen-Shannon divergence of 0/1 codes with these rates, summed over latents, in bits.

    H(m) - (H(p) + H(q)) / 2 for each latent, with m = (p + q) / 2 and H the entropy of a 0/1
    variable (Lin, 1991): at most 1 bit a latent.

    Args:
        home, there: float64 [latents], firing rates.
    """
    middle = bernoulli_entropy((home + there) / 2)
    apart = (bernoulli_entropy(home) + bernoulli_entropy(there)) / 2
    return (middle - apart).sum().item()


def _scaled(batch: TokenBatch, factor: float) -> TokenBatch:
    # Of both error and variance: a FVU has no scale.
    rows = None if batch.rows is None else batch.rows * factor
    return replace(batch, inputs=batch.inputs * factor, targets=batch.targets * factor, rows=rows)


def _row(found: Transferred) -> list[Value]:
    figures = found.figures
    return [
        found.candidate.name,
        f"{found.layer}{' *' * found.at_home}",
        figures.fvu,
        found.scaled_fvu,
        found.refitted_fvu,
        figures.l0,
        int((figures.rates == 0).sum()),
        figures.entropy_bits,
        found.shift,
    ]


def _described(found: Transferred) -> dict[str, Any]:
    figures = found.figures
    return {
        "name": found.candidate.name,
        "layer": found.layer,
        "at_home": found.at_home,
        "tokens": figures.tokens,
        "fvu": figures.fvu,
        "scaled_fvu": found.scaled_fvu,
        "refitted_fvu": found.refitted_fvu,
        "l0": figures.l0,
        "dead": int((figures.rates == 0).sum()),
        "entropy_bits": figures.entropy_bits,
        "shift_bits": found.shift,
    }


def _by_layer(found: list[Transferred]) -> go.Figure:
    figure = go.Figure()
    kinds: dict[str, Callable[[Transferred], Estimate | None]] = {
        "as it is": lambda each: each.figures.fvu,
        "scaled": lambda each: each.scaled_fvu,
        "refitted": lambda each: each.refitted_fvu,
    }
    for name in dict.fromkeys(each.candidate.name for each in found):
        own = [each for each in found if each.candidate.name == name]
        for kind, of in kinds.items():
            there = [(each.layer, fvu.value) for each in own if (fvu := of(each)) is not None]
            if there:
                layers, values = zip(*there, strict=True)
                figure.add_scatter(x=layers, y=values, mode="lines+markers", name=f"{name}, {kind}")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="FVU", type="log", dtick="D2")
    return figure


def _shifts(found: list[Transferred]) -> go.Figure:
    figure = go.Figure()
    for name in dict.fromkeys(each.candidate.name for each in found):
        own = [each for each in found if each.candidate.name == name]
        figure.add_scatter(
            x=[each.layer for each in own],
            y=[each.shift for each in own],
            mode="lines+markers",
            name=name,
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="bits a token", rangemode="tozero")
    return figure
