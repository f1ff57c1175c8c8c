"""Measures a coder on activations that are in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding.entropy import FiringRates
from sae_binary_ext.measure.in_model import apply_coder

TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class CoderMetrics:
    """Figures of one coder on held-out tokens.

    Attributes:
        fvu: squared error over total variance, both summed over tokens and dimensions.
        l0: mean number of active latents a token.
        latents: number of latents of the coder.
        dead: latents active on no token.
        dense_10, dense_50: latents active on more than 10% and 50% of the tokens.
        entropy_bits: entropy of the firing rates, summed over latents, in bits a token; the values
            of active latents add nothing to it.
        rates: float64 [latents], firing rates.
    """

    fvu: float
    l0: float
    latents: int
    dead: int
    dense_10: int
    dense_50: int
    entropy_bits: float
    rates: Tensor

    @property
    def explained_variance(self) -> float:
        """1 - FVU, as SAELens defines it."""
        return 1 - self.fvu


@torch.no_grad()
def measure(coder: SAE[Any], activations: Tensor, targets: Tensor | None = None) -> CoderMetrics:
    """Measure reconstruction and firing of any SAELens coder, binary or stock.

    Args:
        coder: the coder to measure; a ValueError if it reads whole sequences (temporal coders).
        activations: [tokens, d_in]; processed in batches, in float32.
        targets: [tokens, d_out], targets of a transcoder; if None, the activations are the targets.
    """
    targets = activations if targets is None else targets
    rates = FiringRates(coder.cfg.d_sae)
    mean = targets.double().mean(0)
    squared_error = variance = 0.0
    parts = apply_coder(coder, activations, TOKENS_PER_BATCH * coder.cfg.d_sae)
    batches = zip(parts, targets.split(TOKENS_PER_BATCH), strict=True)
    number = -(-len(targets) // TOKENS_PER_BATCH)
    for (_, codes, output, _), target in tqdm(batches, "Measuring", number, leave=False):
        error = output - target.to(output.device).float()
        squared_error += error.double().square().sum().item()
        variance += (target - mean).square().sum().item()
        rates.update(codes)
    return CoderMetrics(
        fvu=squared_error / variance,
        l0=rates.rates.sum().item(),
        latents=len(rates.rates),
        dead=int((rates.counts == 0).sum()),
        dense_10=int((rates.rates > 0.1).sum()),
        dense_50=int((rates.rates > 0.5).sum()),
        entropy_bits=rates.entropy_bits,
        rates=rates.rates,
    )
