"""What a coder keeps, how its latents fire, and what the model loses by it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding.entropy import FiringRates

TOKENS_PER_BATCH = 4096
DENSE_RATES = (0.1, 0.5)


@dataclass(frozen=True)
class CoderMetrics:
    """Figures of one coder on held-out tokens.

    Attributes:
        fvu: squared error over total variance, both summed over tokens and dimensions.
        l0: mean active latents a token.
        latents: width of the code.
        dead: latents active on none of the tokens.
        dense_10, dense_50: latents active on more than 10% and 50% of the tokens.
        entropy_bits: entropy of the firing rates, summed over latents, in bits a token. For a
            coder with values this is the entropy of which latents are active, values not included.
        rates: firing rate of each latent, float64 [latents].
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
def measure(coder: SAE[Any], activations: Tensor) -> CoderMetrics:
    """Reconstruction and firing of a coder.

    Args:
        coder: any SAELens coder, binary or stock.
        activations: [tokens, d_in]; processed in batches, in float32.
    """
    rates = FiringRates(coder.cfg.d_sae)
    mean = activations.double().mean(0)
    squared_error = variance = 0.0
    for batch in tqdm(activations.split(TOKENS_PER_BATCH), "Measuring", leave=False):
        x = batch.float()
        codes = coder.encode(x)
        squared_error += (coder.decode(codes) - x).double().square().sum().item()
        variance += (x - mean).square().sum().item()
        rates.update(codes)
    low, high = ((rates.rates > rate).sum().item() for rate in DENSE_RATES)
    return CoderMetrics(
        fvu=squared_error / variance,
        l0=rates.rates.sum().item(),
        latents=len(rates.rates),
        dead=int((rates.counts == 0).sum()),
        dense_10=int(low),
        dense_50=int(high),
        entropy_bits=rates.entropy_bits,
        rates=rates.rates,
    )


@dataclass(frozen=True)
class SplicedLosses:
    """Next-token cross-entropy, in nats, with a coder's reconstruction in the model's place.

    Attributes:
        clean: of the untouched model.
        ablated: with zeros in place of the activations.
        spliced: with the reconstruction.
    """

    clean: float
    ablated: float
    spliced: float

    @property
    def recovered(self) -> float:
        """Share of the loss between zero ablation and the clean model that splicing keeps."""
        return (self.ablated - self.spliced) / (self.ablated - self.clean)


class LayerInputSplice:
    """Cross-entropy of a causal language model with the input of one layer replaced.

    Args:
        model: a Hugging Face causal language model.
        layer: the layer whose incoming residual stream is replaced, a module that takes it as its
            first argument.
        rows: int64 [rows, context], token ids.
        first_position: positions before it stay as they are. An attention sink at position 0 has
            such a norm that replacing it would measure the sink and not the coder.
    """

    def __init__(
        self, model: Any, layer: torch.nn.Module, rows: Tensor, first_position: int
    ) -> None:
        self._model, self._layer, self._rows = model, layer, rows
        self._first_position = first_position
        self.clean = self._loss(lambda x: x, "Clean model")
        self.ablated = self._loss(torch.zeros_like, "Zero ablation")

    def losses(self, coder: SAE[Any]) -> SplicedLosses:
        """Losses with the coder's reconstruction in place."""
        return SplicedLosses(self.clean, self.ablated, self._loss(coder, "Splicing"))

    @torch.no_grad()
    def _loss(self, replace: Callable[[Tensor], Tensor], description: str) -> float:
        def splice(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *rest = inputs
            kept = hidden[:, : self._first_position]
            replaced = replace(hidden[:, self._first_position :])
            return (torch.cat([kept, replaced], dim=1), *rest)

        handle = self._layer.register_forward_pre_hook(splice)
        try:
            total = 0.0
            for batch in tqdm(self._rows.split(8), description, leave=False):
                loss = self._model(input_ids=batch, labels=batch, use_cache=False).loss
                total += loss.item() * len(batch)
        finally:
            handle.remove()
        return total / len(self._rows)
