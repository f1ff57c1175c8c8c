"""A binary coder of sparsify that looks at its codes once more: refine_passes of its config.

The linear encoder decides on each latent alone. Here encode then turns single latents on or off as
long as the error and the price of the bits fall together (see coding.forms.refining). In SAELens
this is the architecture "binary_refined", and converted coders have the same codes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from sparsify import SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from sae_binary_ext import coding
from sae_binary_ext.coding import check_width
from sae_binary_ext.coding.entropy import batch_tokens
from sae_binary_ext.coding.forms import Encoded, refine
from sae_binary_ext.coding.forms.encoded import DenseCodes
from sae_binary_ext.coding.forms.margins import ones_first
from sae_binary_ext.coding.kernels import sum_over_ranks
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.training.finite import check_finite

# A latent whose running firing rate is 0 has the price of one that fires on half of one of this
# many tokens, as in SAELens. So the price of a dead latent stays one at which it can fire again.
RATE_TOKENS = 20_000


class RefinedSparseCoder(BinarySparseCoder):
    """A binary autoencoder of sparsify with refined codes.

    SparseCoder(d_in, config) makes one if the config's refine_passes is at least 1. The buffer
    flip_price [latents], in the coder's dtype, is what a code of 1 costs, in squared units of the
    input.

    In training, the decoder learns from refined codes, and the encoder learns to tell them. Before
    each batch, the prices are set by the running firing rates and by the variance of many batches.
    """

    flip_price: Tensor

    def __init__(
        self,
        d_in: int,
        cfg: SparseCoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        decoder: bool = True,
    ) -> None:
        super().__init__(d_in, cfg, device, dtype, decoder=decoder)
        if not self.cfg.refine_passes:
            raise ValueError(
                "refine_passes=0: a RefinedSparseCoder looks at its codes at least once more. Set "
                "refine_passes=12, or make a BinarySparseCoder."
            )
        if not decoder:
            raise ValueError(
                f"decoder=False with refine_passes={self.cfg.refine_passes}: codes are refined by "
                "what the decoder leaves over. Load it with decoder=True."
            )
        self.register_buffer("flip_price", torch.zeros_like(self.encoder.bias.detach()))
        self._rated = False

    @override
    def encode(self, x: Tensor) -> EncoderOutput:
        """As BinarySparseCoder's. m is the largest number of latents active on one token.

        The gradient of the codes is that of the linear encoder's codes.
        """
        rows = self._checked_rows(x)
        weight, bias = self.encoder.weight.T, self.encoder.bias
        pre = coding.pre_activations(rows - self.origin(), weight, bias)
        linear = coding.binarise(pre, self.log_threshold, self.rule)
        refined = self._refine(linear.detach(), rows, self.cfg.refine_passes)
        _, index = ones_first(refined != 0)
        codes = (linear + (refined - linear.detach())).gather(-1, index)
        lead = x.shape[:-1]
        parts = (part.view(*lead, part.shape[-1]) for part in (codes, index, pre))
        return EncoderOutput(*parts)

    @override
    def encode_packed(self, x: Tensor) -> Tensor:
        packed = coding.pack(self._infer(x))
        return packed.view(*x.shape[:-1], packed.shape[-1])

    @override
    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As BinarySparseCoder's, and always the same latents as encode."""
        ones, index = ones_first(self._infer(x) != 0)
        shape = (*x.shape[:-1], ones.shape[-1])
        return ones.to(self.dtype).view(shape), index.view(shape)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Weights to train from (the Trainer's finetune) may be those of a coder without prices. The
        # file of a refined coder always has them.
        if not self.cfg.read_from_file:
            state_dict = {"flip_price": self.flip_price, **state_dict}
        self._rated = False
        return super().load_state_dict(state_dict, *args, **kwargs)

    @override
    def _start(self, x: Tensor, y: Tensor) -> None:
        """Set the initial parameters on a Trainer's first batch, and the prices in training."""
        super()._start(x, y)
        if self._learns():
            self._set_price(x, y)

    @override
    def _encode_batch(self, x: Tensor, dead_mask: Tensor | None) -> tuple[Encoded, Tensor | None]:
        pre = self._encoder(x).pre_activations()
        most = self.cfg.training_passes if self._learns() else self.cfg.refine_passes
        passes = min(most, self.cfg.refine_passes)
        codes = self._refine(self._linear_codes(pre), x, passes)
        return DenseCodes(len(x), self.num_latents, codes, pre), pre

    @override
    def _code_loss(self, encoded: Encoded, pre: Tensor | None, rates: Tensor) -> Tensor | None:
        """Cross-entropy of a logistic that tells the refined codes, a scalar.

        The logistic's width is ste_temperature. The loss is in nats, summed over latents and
        averaged over tokens, as in SAELens, although it adds to the gradient of an FVU: it is the
        encoder's only loss besides AuxK, and no loss of the decoder. The step of adam, signum or
        muon does not depend on its unit. The loss on dense latents is part of the prices.
        """
        if pre is None:
            return None
        told = (pre - self.log_threshold.exp()) / self.cfg.ste_temperature
        codes = encoded.dense().to(told.dtype)
        loss = F.binary_cross_entropy_with_logits(told, codes, reduction="sum")
        group = self.progress.group
        tokens = batch_tokens(encoded.tokens, loss.device, group)
        return sum_over_ranks(loss, group) / tokens / self.progress.parts

    @torch.no_grad()
    def _set_price(self, x: Tensor, y: Tensor) -> None:
        """Set the prices before a batch x with targets y, both [tokens, d_in].

        The price of a dense latent also has the derivative of the loss on dense latents.
        """
        group, rates = self.progress.group, self.firing_rates
        if not self._has_rates():
            # A coder that was converted from SAELens has prices and no rates.
            if self.flip_price.any():
                return
            codes = self._linear_codes(self._encoder(x).pre_activations())
            rates = coding.firing_rates(codes, group)
        tokens = batch_tokens(len(y), y.device, group)
        variance = coding.summed_variance(y, group) / max(tokens, 1)
        price = coding.price_of_bits(rates, self.cfg.cost_of_bit, RATE_TOKENS)
        dense = self.cfg.dense_alpha * (rates > self.cfg.dense_rate)
        # Equal tokens have no variance. Bits that cost nothing would stay in a file saved then.
        known = variance > 0
        prices = coding.follow_prices(self.flip_price, (price + dense) * variance, tokens)
        self.flip_price.copy_(torch.where(known, prices, self.flip_price))

    def _has_rates(self) -> bool:
        """Whether a batch has set the running firing rates. A GPU waits until one has."""
        self._rated = self._rated or bool(self.firing_rates.any())
        return self._rated

    def _checked_rows(self, x: Tensor) -> Tensor:
        """x as [tokens, d_in] in the coder's dtype."""
        check_width(x, self.d_in)
        check_finite(x)
        return x.reshape(-1, self.d_in).to(self.dtype)

    @torch.no_grad()
    def _infer(self, x: Tensor) -> Tensor:
        """Refined codes of x [..., d_in] without gradient, [tokens, latents]."""
        encoded, _ = self._encode_batch(self._checked_rows(x), None)
        return encoded.dense()

    def _linear_codes(self, pre: Tensor) -> Tensor:
        """The linear encoder's codes, without gradient, from which the search starts."""
        return coding.binarise(pre.detach(), self.log_threshold.detach(), self.rule)

    @torch.no_grad()
    def _refine(self, codes: Tensor, x: Tensor, passes: int) -> Tensor:
        """Refined codes [tokens, latents] of linear codes of x [tokens, d_in]; no gradient."""
        origin = self.origin()
        # Equal to x - b_dec, in the order that SAELens' coders round it, for the same codes there.
        target = (x - origin) + origin - self.b_dec
        if self.W_skip is not None:
            target = target - x @ self.W_skip.mT
        return refine(codes, target, self.decoder_weight(), self.flip_price, passes)
