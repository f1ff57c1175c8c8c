"""Bits of a stock coder's values, quantised as coarsely as its error allows.

This is the description length of MDL-SAE (Ayonrinde, Pearce and Sharkey, arXiv 2410.11179): what
is active, and one quantised value for each active latent.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.measure.in_model import apply_coder

# The quantised code may have this much more squared error than the code itself, as a share.
TOLERANCE = 0.01
# The step of quantisation is found to within this factor.
PRECISION = 1.05
# Smallest and largest step that is tried, in units of the mean absolute value.
STEPS = (1e-3, 1e2)
CODES_AT_ONCE = 4_000_000


@torch.no_grad()
def value_bits(
    coder: Any, activations: Tensor, targets: Tensor, tolerance: float = TOLERANCE
) -> float:
    """Bits a token of the values of active latents; 0 for a coder whose codes are 0 or 1.

    All values have one step of quantisation, in units of the output: a latent's values are
    multiples of step / |its decoder row|. Each latent's quantised values are coded by their own
    frequencies on these tokens, so few tokens favour coders with values.

    Args:
        coder: a SAELens coder whose output is decode(encode(x)).
        activations: [tokens, d_in].
        targets: [tokens, d_out], in the same unit as the output.
        tolerance: how much the squared error may rise, as a share.
    """
    parts = [
        (codes.cpu(), targets[place].float())
        for place, codes, _, _ in apply_coder(coder, activations, CODES_AT_ONCE)
    ]
    values = torch.cat([codes[codes != 0] for codes, _ in parts])
    if not len(values) or bool((values == 1).all()):
        return 0.0
    scale = coder.W_dec.detach().float().norm(dim=1).cpu().clamp_min(1e-12)
    unit = torch.cat([(codes * scale)[codes != 0].abs() for codes, _ in parts]).mean().item()
    most = _squared_error(coder, parts) * (1 + tolerance)
    low, high = (unit * step for step in STEPS)
    while high / low > PRECISION:
        step = (low * high) ** 0.5
        quantised = ((_quantised(codes, step / scale), target) for codes, target in parts)
        low, high = (step, high) if _squared_error(coder, quantised) <= most else (low, step)
    levels = [_levels(codes, low / scale) for codes, _ in parts]
    return _entropy(torch.cat(levels, dim=1)) / len(activations)


def _quantised(codes: Tensor, steps: Tensor) -> Tensor:
    return (codes / steps).round() * steps


def _levels(codes: Tensor, steps: Tensor) -> Tensor:
    """Latent and level of each active code, int64 [2, active codes]."""
    active = codes.nonzero(as_tuple=True)
    return torch.stack([active[1], (codes / steps).round()[active].long()])


def _squared_error(coder: Any, parts: list[tuple[Tensor, Tensor]] | Iterator[Any]) -> float:
    return sum(
        (coder.decode(codes.to(coder.device)).cpu() - target).double().square().sum().item()
        for codes, target in parts
    )


def _entropy(levels: Tensor) -> float:
    """Bits of all values, each coded by its latent's frequencies; levels [2, active codes]."""
    kinds, counts = levels.unique(dim=1, return_counts=True)
    _, latent = kinds[0].unique(return_inverse=True)
    total = torch.zeros(int(latent.max()) + 1, dtype=torch.float64)
    total.index_add_(0, latent, counts.double())
    return -(counts * (counts / total[latent]).log2()).sum().item()
