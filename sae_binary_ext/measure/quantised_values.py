"""Bits of a stock coder's values, quantised as coarsely as its error allows.

This is the description length of MDL-SAE (Ayonrinde, Pearce and Sharkey, arXiv 2410.11179): what
is active, and one quantised value for each active latent.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.measure.in_model import apply_coder, output_of_changed

# The quantised code may have this much more squared error than the code itself, as a share.
TOLERANCE = 0.01
# The step of quantisation is found to within this factor.
PRECISION = 1.05
# Smallest and largest step that is tried, in units of the mean absolute value.
STEPS = (1e-3, 1e2)
CODES_AT_ONCE = 4_000_000


@torch.no_grad()
def value_bits(
    coder: Any,
    activations: Tensor,
    targets: Tensor,
    tolerance: float = TOLERANCE,
    where: Tensor | None = None,
) -> float:
    """Bits a token of the values of active latents; 0 for a coder whose codes are 0 or 1.

    All values have one step of quantisation, in units of the output: a latent's values are
    multiples of step / |its decoder row|. Each latent's quantised values are coded by their own
    frequencies on these tokens, so few tokens favour coders with values.

    Args:
        coder: any coder in SAELens' form.
        activations: [tokens, d_in]; rows [rows, context, d_in] for a coder that reads sequences.
        targets: [tokens, d_out], in the same unit as the output.
        tolerance: how much the squared error may rise, as a share.
        where: bool [rows, context], the tokens that count, if activations are rows.
    """
    parts = apply_coder(coder, activations, CODES_AT_ONCE, where)
    found = [(codes.nonzero()[:, 1].cpu(), codes[codes != 0].cpu()) for _, codes, _, _ in parts]
    latents, values = map(torch.cat, zip(*found, strict=True))
    if bool((values == 1).all()):
        return 0.0
    scale = coder.W_dec.detach().float().norm(dim=1).clamp_min(1e-12)

    def error(change: Callable[[Tensor], Tensor]) -> float:
        return _squared_error(coder, activations, targets, where, change)

    most = error(torch.clone) * (1 + tolerance)
    unit = (values * scale.cpu()[latents]).abs().mean().item()
    low, high = (unit * step for step in STEPS)
    while high / low > PRECISION:
        step = (low * high) ** 0.5
        steps = step / scale
        fits = error(lambda codes, steps=steps: (codes / steps).round() * steps) <= most
        low, high = (step, high) if fits else (low, step)
    levels = (values / (low / scale.cpu())[latents]).round().long()
    return _entropy(torch.stack([latents, levels])) / len(targets)


def _squared_error(
    coder: Any,
    activations: Tensor,
    targets: Tensor,
    where: Tensor | None,
    change: Callable[[Tensor], Tensor],
) -> float:
    """Squared error of the outputs of changed codes, summed over tokens and dimensions.

    Each part is encoded again, because coders that normalise decode the tokens they saw last.
    """
    total, first = 0.0, 0
    tokens_each = 1 if where is None else where.shape[1]
    size = max(CODES_AT_ONCE // (coder.cfg.d_sae * tokens_each), 1)
    for part in torch.arange(len(activations)).split(size):
        output = output_of_changed(coder, activations[part], change)
        if where is not None:
            output = output[where[part].to(output.device)]
        wanted = targets[first : first + len(output)].float()
        total += (output.cpu() - wanted.cpu()).double().square().sum().item()
        first += len(output)
    return total


def _entropy(levels: Tensor) -> float:
    """Bits of all values, each coded by its latent's frequencies.

    levels, int64 [2, active codes], has the latent and the level of each.
    """
    kinds, counts = levels.unique(dim=1, return_counts=True)
    _, latent = kinds[0].unique(return_inverse=True)
    total = torch.zeros(int(latent.max()) + 1, dtype=torch.float64)
    total.index_add_(0, latent, counts.double())
    return -(counts * (counts / total[latent]).log2()).sum().item()
