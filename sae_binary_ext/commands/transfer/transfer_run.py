"""`sae-binary transfer`: applies coders of one layer to other layers."""

import copy
from dataclasses import replace

from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.commands.transfer.config import TransferConfig
from sae_binary_ext.commands.transfer.transfer_page import Transferred, transfer_page
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import TokenBatch
from sae_binary_ext.measure.in_model import layer_hooks, layer_of
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.measure.text import Halves, figures_on, read_halves
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.refitting import refit_decoder


def run_transfer(coders: list[str], config: TransferConfig) -> Analysis:
    """Apply coders to other layers; arguments and errors as for analyse_coders.

    Also ValueError if a hook or a layer does not exist, or if the text is only one document.
    """
    return analyse_coders(coders, config, _measure, transfer_page)


def _measure(opened: OpenedModel, config: TransferConfig) -> list[Transferred]:
    hooks = {
        each.name: layer_hooks(
            opened.model, (each.site.hook_name, each.site.hook_name_out), config.layers
        )
        for each in opened.candidates
    }
    states = read_halves(opened, config, (pair for own in hooks.values() for pair in own.values()))
    found: list[Transferred] = []
    with tqdm(total=sum(map(len, hooks.values())), desc="Layers", unit="layers") as progress:
        for candidate in opened.candidates:
            own = {layer: states[pair] for layer, pair in hooks[candidate.name].items()}
            home = own[layer_of(candidate.site.hook_name)]
            rates = figures_on(candidate.coder, home.measured).rates
            for layer, there in own.items():
                found.append(_transferred(candidate, layer, there, home, rates))
                progress.update()
    return found


def _transferred(
    candidate: Candidate, layer: int, there: Halves, home: Halves, rates: Tensor
) -> Transferred:
    """Apply a coder to a layer. `rates`, float64 [latents], are firing rates at its own layer."""
    figures = figures_on(candidate.coder, there.measured)
    scaled = refitted = None
    if not candidate.is_transcoder:
        factor = home.mean_norm() / there.mean_norm()
        # Scale inputs and targets. The FVU stays comparable, because error and variance scale
        # alike.
        batches = [_scaled(batch, factor) for batch in there.measured]
        scaled = figures_on(candidate.coder, batches).fvu
    if isinstance(candidate.coder, BinaryCoder):
        coder = copy.deepcopy(candidate.coder)
        refit_decoder(coder, there.to_fit(coder.W_dec.device))
        refitted = figures_on(coder, there.measured).fvu
    shift = firing_shift(rates, figures.rates)
    return Transferred(candidate, layer, there is home, figures, scaled, refitted, shift)


def firing_shift(home: Tensor, there: Tensor) -> float:
    """Jensen-Shannon divergence of firing, summed over latents, in bits; at most 1 bit a latent.

    For each latent: H(m) - (H(p) + H(q)) / 2, with m = (p + q) / 2 and H the entropy of a 0/1
    variable (Lin, 1991). p and q are firing rates: `home` and `there`, float64 [latents].
    """
    middle = bernoulli_entropy((home + there) / 2)
    apart = (bernoulli_entropy(home) + bernoulli_entropy(there)) / 2
    return (middle - apart).sum().item()


def _scaled(batch: TokenBatch, factor: float) -> TokenBatch:
    rows = None if batch.rows is None else batch.rows * factor
    return replace(batch, inputs=batch.inputs * factor, targets=batch.targets * factor, rows=rows)
