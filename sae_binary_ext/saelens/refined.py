"""The architecture "binary_refined": a binary autoencoder that looks at its codes once more.

The linear encoder decides on each latent alone. Here encode then turns single latents on or off as
long as the error and the price of the bits fall together (see coding.refining). refine_coder makes
such a coder of a trained one.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext import checks
from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.coding.packing import pack
from sae_binary_ext.coding.refining import price_of_bits, refine
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.saelens.autoencoder import BinaryCodeConfig, BinaryCoder
from sae_binary_ext.saelens.refitting import fit_codes, replace_decoder
from sae_binary_ext.training.least_squares import PULL

# The decoder is refitted this often, each time to codes that the last decoder refined.
ROUNDS = 3
# Tokens on which bits are counted to find the cost of a bit.
PRICED_TOKENS = 2048
# Smallest and largest cost of a bit that is tried, as a share of variance.
COSTS_OF_BIT = (1e-6, 1e-1)


@dataclass
class RefinedSAEConfig(BinaryCodeConfig):
    """Config of a refined binary autoencoder; also has the fields of BinaryCodeConfig.

    Args:
        refine_passes: how often encode looks at what its codes leave over, at least 1. Each pass
            takes about as long as the linear encoder, and turns at most 16 latents on or off on a
            token. 3 passes get most of the gain.
    """

    refine_passes: int = 3

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_at_least(1, refine_passes=self.refine_passes)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_refined"


class RefinedSAE(BinaryCoder):
    """A binary autoencoder that refines its codes, for inference.

    flip_price [d_sae] is what a code of 1 costs, in squared units of the input. The gradient of
    codes is that of the linear encoder's codes.
    """

    cfg: RefinedSAEConfig
    flip_price: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.flip_price = nn.Parameter(torch.zeros_like(self.b_enc), requires_grad=False)

    @override
    def encode_packed(self, x: Tensor) -> Tensor:
        return pack(self.encode(x).detach())

    @override
    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As BinaryCoder's; m is the largest number of latents that fire on a token."""
        codes = self.encode(x).detach()
        most = int(codes.sum(-1, dtype=torch.float32).max()) if codes.numel() else 0
        return codes.topk(most, dim=-1)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.flip_price.data /= scaling_factor**2

    @override
    def _codes(self, centred: Tensor, pre: Tensor, noise: bool) -> Tensor:
        codes = super()._codes(centred, pre, noise)
        target = centred + self._origin() - self.b_dec
        rows = (codes.detach().flatten(0, -2), target.detach().flatten(0, -2))
        refined = refine(*rows, self.W_dec, self.flip_price, self.cfg.refine_passes)
        return codes + (refined.view_as(codes) - codes.detach())


@torch.no_grad()
def refine_coder(
    coder: BinaryCoder,
    batches: Sequence[tuple[Tensor, Tensor]],
    passes: int,
    cost_of_bit: float | None = None,
    pull: float = PULL,
) -> RefinedSAE:
    """A refined coder with a trained coder's encoder, and with the prices and decoder for it.

    Decoder and codes depend on each other. So the codes of a third of the batches are refined, the
    decoder is refitted to them, and the next third follows.

    Args:
        coder: a binary autoencoder, refined or not. It is not changed.
        batches: inputs and targets as refit_decoder takes them; at least one for each of ROUNDS.
        passes: the new coder's refine_passes.
        cost_of_bit: squared error that is worth a bit, as a share of the variance. None finds the
            cost at which codes have as many bits as before.
        pull: see refit_decoder.

    Raises:
        ValueError: there are fewer batches than ROUNDS, or an argument is out of range.
    """
    if len(batches) < ROUNDS:
        raise ValueError(f"batches: {len(batches)}, but the decoder is refitted {ROUNDS} times.")
    if cost_of_bit is not None and not cost_of_bit > 0:
        raise ValueError(f"cost_of_bit={cost_of_bit!r}: give a positive share of the variance.")
    refined = _unpriced(coder, passes)
    pricing = _Pricing(refined, coder, torch.cat([x for x, _ in batches])[:PRICED_TOKENS])
    pricing.set_price(cost_of_bit or pricing.find_cost())
    for number in range(ROUNDS):
        fit = fit_codes(refined, batches[number::ROUNDS])
        replace_decoder(fit, refined, pull)
        pricing.rates, pricing.tokens = fit.counts.diagonal() / fit.tokens, fit.tokens
        pricing.set_price(cost_of_bit or pricing.find_cost())
    return refined


def _unpriced(coder: BinaryCoder, passes: int) -> RefinedSAE:
    """A refined coder with the weights of another coder. Its bits cost nothing yet."""
    names = BinaryCodeConfig.__dataclass_fields__.keys() - {"metadata"}
    metadata: Any = copy.deepcopy(coder.cfg.metadata)
    # Remove these figures of SAELens, because they are of the codes before.
    for name in ("l0", "num_dead_features"):
        metadata.__dict__.pop(name, None)
    fields = {name: getattr(coder.cfg, name) for name in names}
    refined = RefinedSAE(RefinedSAEConfig(**fields, metadata=metadata, refine_passes=passes))
    refined.load_state_dict(coder.state_dict(), strict=False)
    return refined.to(coder.device)


class _Pricing:
    """Sets a coder's flip_price from its firing rates and a cost of a bit, on a sample of inputs.

    rates, [latents], were measured on `tokens` tokens.
    """

    def __init__(self, coder: RefinedSAE, before: BinaryCoder, sample: Tensor) -> None:
        self._coder, self._sample = coder, sample
        self._variance = total_variance(coder.process_sae_in(sample)).item()
        self.rates, self.tokens = _rates(before, sample), len(sample)
        self._bits = bernoulli_entropy(self.rates).sum().item()

    def set_price(self, cost: float) -> None:
        self._coder.flip_price.copy_(price_of_bits(self.rates, cost * self._variance, self.tokens))

    def find_cost(self) -> float:
        """The cost of a bit, as a share of variance, at which codes have as many bits as before."""
        low, high = COSTS_OF_BIT
        while high / low > 1.05:
            middle = math.sqrt(low * high)
            self.set_price(middle)
            bits = bernoulli_entropy(_rates(self._coder, self._sample)).sum().item()
            low, high = (middle, high) if bits > self._bits else (low, middle)
        return math.sqrt(low * high)


def _rates(coder: BinaryCoder, x: Tensor) -> Tensor:
    """Firing rates on inputs x [tokens, d_in]: [latents], float32."""
    return (coder.encode(x) != 0).float().mean(0)
