"""Refit the decoder of a binary coder by least squares; its codes stay the same.

With fixed codes the best decoder has a closed form, which training by gradient steps only
approaches.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.checkpoints import saelens
from sae_binary_ext.checkpoints.formats import format_of
from sae_binary_ext.checkpoints.load import placed, write_coder
from sae_binary_ext.checkpoints.sources import (
    METRICS_FILE,
    SPARSITY_FILE,
    find_coder,
    read_coder,
    stated_place,
)
from sae_binary_ext.measure.in_model import heads_side_by_side
from sae_binary_ext.measure.least_squares import DecoderFit
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.text import Text, read_activations
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.transcoder import TranscoderFields

# Keeps latents with few tokens from fitting noise. Among 1, 30, 100 and 300, the value 30 had the
# least error on held-out tokens (the demo's coder "binary", 4608 latents, 270,000 tokens).
PULL = 30.0
# Tokens to measure on for each token fitted on.
MEASURED_SHARE = 0.1


@torch.no_grad()
def refit_decoder(
    coder: BinaryCoder, batches: Iterable[tuple[Tensor, Tensor]], pull: float = PULL
) -> int:
    """Give a coder the decoder of least squared error for its codes on these tokens.

    b_dec is fitted too. If the coder subtracts b_dec from its input, it stays the same, because
    the codes depend on it.

    Args:
        coder: a binary autoencoder or transcoder, changed in place.
        batches: inputs [tokens, d_in] and targets [tokens, d_out], a few thousand tokens each; the
            targets of an autoencoder are its inputs.
        pull: how strongly a row is held to its old value, in tokens on which its latent fires.

    Returns:
        The number of tokens that the decoder was fitted to.

    Raises:
        ValueError: pull is not positive, or there are no batches.
    """
    if not pull > 0:
        raise ValueError(f"pull={pull!r}: give a positive number of tokens.")
    fit = DecoderFit(*coder.W_dec.shape, device=coder.W_dec.device)
    with heads_side_by_side(coder):
        for x, target in batches:
            fit.add(coder.encode(x) != 0, _decoder_target(coder, x, target))
    if fit.tokens == 0:
        raise ValueError("batches: no activations to refit the decoder on.")
    subtracts = coder.cfg.apply_b_dec_to_input
    weight, bias = fit.solve(coder.W_dec, coder.b_dec, pull, fits_bias=not subtracts)
    coder.W_dec.copy_(weight)
    coder.b_dec.copy_(bias)
    return fit.tokens


def _decoder_target(coder: Any, x: Tensor, target: Tensor) -> Tensor:
    """Targets for the sum of decoder rows and b_dec, [tokens, d_out]."""
    if isinstance(coder.cfg, TranscoderFields):
        return target if coder.W_skip is None else target - x @ coder.W_skip.T
    # The input as the encoder sees it: reshaped and normalised.
    return coder.process_sae_in(x) + coder.b_dec * coder.cfg.apply_b_dec_to_input


@dataclass(frozen=True)
class Refitted:
    """Result of a refit.

    Attributes:
        fitted_tokens: tokens that the decoder was fitted to.
        measured_tokens: tokens after these, on which the FVU was measured.
        fvu_before, fvu_after: FVU with the old decoder and with the new one.
    """

    fitted_tokens: int
    measured_tokens: int
    fvu_before: float
    fvu_after: float


def refit(
    source: str | Path,
    out: str | Path,
    text: Text,
    hookpoint: str | None = None,
    pull: float = PULL,
) -> Refitted:
    """Refit the decoder of a saved binary coder of either host.

    Args:
        source: a saved coder, as checkpoints.load_coder takes it.
        out: folder of the refitted coder, in the format of the old one.
        text: the text to fit to. A tenth as many tokens after it are used for measuring.
        hookpoint: as checkpoints.load_coder takes it.
        pull: as refit_decoder takes it.

    Raises:
        CheckpointError: there is no such coder, or SAELens has no such architecture.
        ValueError: the codes have values, the coder's files do not name its hook and model, the
            text is too short, or out holds figures of another decoder.
    """
    name, folder = find_coder(source, hookpoint)
    portable = read_coder(folder, stated_place(name, hookpoint))
    if not portable.shape.binary:
        raise ValueError(f"{source}: its codes have values. Give a binary coder.")
    if (Path(out) / METRICS_FILE).exists():
        raise ValueError(
            f"{out}: holds the {METRICS_FILE} of another decoder. Choose a new folder."
        )
    coder: Any = saelens.to_coder(placed(portable, "saelens"))
    unfitted = copy.deepcopy(coder)
    activations = read_activations(coder, text)
    fitted = refit_decoder(coder, _take(activations, text.tokens), pull)
    measured = list(_take(activations, math.ceil(text.tokens * MEASURED_SHARE)))
    if not measured:
        raise ValueError(
            f"dataset={text.dataset!r}: ends after {fitted} tokens, so none are left to measure "
            f"on. Give tokens of at most {fitted - fitted // 8}."
        )
    inputs, targets = (torch.cat(each) for each in zip(*measured, strict=True))
    fvu = [measure(each, inputs, targets).fvu for each in (unfitted, coder)]
    dtype = portable.dtype
    decoder = {
        "decoder_weight": coder.W_dec.detach().to(dtype),
        "decoder_bias": coder.b_dec.detach().to(dtype),
    }
    refitted = replace(portable, tensors=portable.tensors | decoder)
    # The codes stay the same, so the old firing rates are still right. Other figures are not.
    write_coder(refitted, Path(out), str(format_of(folder)), [folder / SPARSITY_FILE])
    return Refitted(fitted, len(inputs), *fvu)


def _take(
    activations: Iterator[tuple[Tensor, Tensor]], tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The next tokens of the stream, to the end of a batch; fewer if the stream ends."""
    with tqdm(total=tokens, unit="tokens", unit_scale=True, leave=False) as progress:
        taken = 0
        while taken < tokens and (pair := next(activations, None)) is not None:
            taken += len(pair[0])
            progress.update(len(pair[0]))
            yield pair
