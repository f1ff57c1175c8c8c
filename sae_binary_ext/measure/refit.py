"""Changes a saved binary coder: refits its decoder by least squares, or keeps some latents."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.checkpoints import saelens, sources
from sae_binary_ext.checkpoints.load import placed, write_coder
from sae_binary_ext.checkpoints.sources import format_of
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.text import Text, read_activations
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.refined import refine_coder
from sae_binary_ext.saelens.refitting import refit_decoder, skip_weight
from sae_binary_ext.training.least_squares import PULL

# Number of tokens to measure on, as a share of the tokens that the decoder is fitted to.
MEASURED_SHARE = 0.1
DIMENSION_OF_LATENTS = {"W_enc": 1, "b_enc": 0, "log_threshold": 0, "W_dec": 0, "flip_price": 0}
AnyCoder = TypeVar("AnyCoder", bound=BinaryCoder)


@dataclass(frozen=True)
class Refitted:
    """FVU and bits a token (the entropy of codes) of the old and the new coder.

    Both are measured on text after the tokens that were fitted. `refined` says whether the new
    coder refines its codes.
    """

    fitted_tokens: int
    measured_tokens: int
    fvu_before: float
    fvu_after: float
    bits_before: float
    bits_after: float
    refined: bool


def refit(
    source: str | Path,
    out: str | Path,
    text: Text,
    hookpoint: str | None = None,
    pull: float = PULL,
    refine_passes: int = 0,
    cost_of_bit: float | None = None,
) -> Refitted:
    """Refit the decoder of a saved binary coder of either host.

    Args:
        source, hookpoint: a saved coder; both as in checkpoints.load_coder.
        out: folder of the refitted coder, in the format of the old one.
        text: the text to fit to. The tokens after it, one tenth more, are used to measure.
        pull: as in refit_decoder.
        refine_passes, cost_of_bit: passes and cost_of_bit of refine_coder. 0 passes leave the codes
            of a coder as they are, and refine those of a refined coder as often as before.

    Raises:
        CheckpointError: the coder does not exist, or SAELens does not have its architecture.
        ValueError: the codes have values, the coder's files do not name its hook and model, the
            text is too short, or `out` holds figures of another decoder.
    """
    source, hookpoint = sources.split(source, hookpoint)
    name, folder = sources.find_coder(source, hookpoint)
    portable = sources.read_coder(folder, sources.stated_place(name, hookpoint))
    if not portable.shape.binary:
        raise ValueError(f"{source}: its codes have values. Give a binary coder.")
    if (Path(out) / sources.METRICS_FILE).exists():
        raise ValueError(
            f"{out}: holds the {sources.METRICS_FILE} of another decoder. Choose a new folder."
        )
    passes = refine_passes or portable.shape.refine_passes
    if passes and (portable.shape.transcoder or format_of(folder) not in ("saelens", "sparsify")):
        raise ValueError(
            f"refine_passes={passes}: {source} must be an autoencoder in the format of SAELens or "
            "sparsify. A transcoder does not see its target when it encodes. `sae-binary convert` "
            "writes these formats."
        )
    unfitted: Any = saelens.to_coder(placed(portable, "saelens"))
    activations = read_activations(unfitted, text)
    to_fit = _take(activations, text.tokens)
    if passes:
        batches = list(to_fit)
        coder = refine_coder(unfitted, batches, passes, cost_of_bit, pull)
        fitted = sum(len(x) for x, _ in batches)
    else:
        coder = copy.deepcopy(unfitted)
        fitted = refit_decoder(coder, to_fit, pull).tokens
    measured = list(_take(activations, math.ceil(text.tokens * MEASURED_SHARE)))
    if not measured:
        raise ValueError(
            f"dataset={text.dataset!r}: ends after {fitted} tokens, so none are left to measure "
            f"on. Give tokens of at most {fitted - fitted // 8}."
        )
    inputs, targets = (torch.cat(each) for each in zip(*measured, strict=True))
    figures = [measure(each, inputs, targets) for each in (unfitted, coder)]
    fields = {"decoder_weight": coder.W_dec, "decoder_bias": coder.b_dec}
    if (skip := skip_weight(coder)) is not None:
        fields["skip_weight"] = skip
    if passes:
        fields["flip_price"] = coder.flip_price
    changed = {name: value.detach().to(portable.dtype) for name, value in fields.items()}
    shape = replace(portable.shape, refine_passes=passes)
    rates = None if passes else portable.firing_rates
    refitted = replace(
        portable, shape=shape, tensors=portable.tensors | changed, firing_rates=rates
    )
    # If codes stay the same, so do their firing rates. Other figures are out of date.
    records = [] if passes else [folder / sources.SPARSITY_FILE]
    write_coder(refitted, Path(out), str(format_of(folder)), records)
    fvu, bits = ([getattr(each, name) for each in figures] for name in ("fvu", "entropy_bits"))
    return Refitted(fitted, len(inputs), *fvu, *bits, refined=passes > 0)


def _take(
    activations: Iterator[tuple[Tensor, Tensor]], tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The next tokens of the stream, in whole batches; fewer if the stream ends."""
    with tqdm(total=tokens, unit="tokens", unit_scale=True, leave=False) as progress:
        taken = 0
        while taken < tokens and (pair := next(activations, None)) is not None:
            taken += len(pair[0])
            progress.update(len(pair[0]))
            yield pair


@torch.no_grad()
def with_latents(coder: AnyCoder, latents: Tensor) -> AnyCoder:
    """A coder made of some latents, int64 [new d_sae], of another coder; at least one latent.

    The same latent may occur twice.
    """
    if not len(latents):
        raise ValueError(
            f"latents=[]: a coder needs at least one of the {coder.cfg.d_sae} latents. If no "
            "latent was worth its bits, train longer or lower the price of a bit."
        )
    metadata: Any = copy.deepcopy(coder.cfg.metadata)
    # Remove these figures of SAELens, because they are for all latents of the old coder.
    for name in ("l0", "num_dead_features"):
        metadata.__dict__.pop(name, None)
    chosen = type(coder)(replace(coder.cfg, d_sae=len(latents), metadata=metadata))
    state = coder.state_dict()
    for name in state.keys() & DIMENSION_OF_LATENTS.keys():
        own = latents.to(state[name].device)
        state[name] = state[name].index_select(DIMENSION_OF_LATENTS[name], own)
    chosen.load_state_dict(state)
    return chosen
