"""A sparse coder of sparsify whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext import coding
from sae_binary_ext.coding import CodeRule, Encoder, check_width
from sae_binary_ext.coding.forms import encode_batch, encode_codes, infer_indices, infer_packed
from sae_binary_ext.coding.forms.margins import active_latents
from sae_binary_ext.coding.kernels import Picks, seeded, sum_over_ranks
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify import losses, starting
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.sparsify.trainer_state import TrainingProgress
from sae_binary_ext.training.attach import attach_to_loss, attach_to_output
from sae_binary_ext.training.collapse import CollapseWatch
from sae_binary_ext.training.finite import FiniteRows, FiniteWatch, check_finite, check_parameters

# Share of the newest batch in the running firing rates.
RATE_UPDATE = 0.01


class BinarySparseCoder(SparseCoder):
    """sparsify's SparseCoder with codes of 0 and 1.

    sparsify's parameters are the encoder, W_dec [latents, d_in], b_dec [d_in] and W_skip
    [d_in, d_in]. This class adds log_threshold [latents], in float32 or wider for any dtype of the
    coder. Its buffer firing_rates [latents] is a running mean over training batches.
    """

    cfg: BinarySparseCoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    firing_rates: Tensor

    def __init__(
        self,
        d_in: int,
        cfg: SparseCoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        decoder: bool = True,
    ) -> None:
        if not isinstance(cfg, BinarySparseCoderConfig) or not cfg.is_binary():
            raise ValueError(
                f"activation={cfg.activation!r}: a BinarySparseCoder takes a "
                "BinarySparseCoderConfig with a binary activation."
            )
        super().__init__(d_in, cfg, device, dtype, decoder=decoder)
        cfg.code_rule().check_latents(self.num_latents)
        self.log_threshold = nn.Parameter(
            torch.full(
                (self.num_latents,),
                math.log(coding.INITIAL_THRESHOLD),
                dtype=torch.promote_types(self.dtype, torch.float32),
                device=device,
            )
        )
        self.register_buffer("firing_rates", torch.zeros_like(self.log_threshold.data))
        self.progress = TrainingProgress()
        self.start = starting.Start(of_binary_file=cfg.read_from_file)
        self._watch = FiniteWatch()
        self._finite_rows = FiniteRows()
        self._collapse_watch = CollapseWatch()

    @property
    def rule(self) -> CodeRule:
        """Selection and surrogate. The Trainer may change k during training (k_decay_steps)."""
        return self.cfg.code_rule()

    @property
    def skipped_tokens(self) -> int:
        """Tokens that skip_non_finite has left out of training so far."""
        return self._finite_rows.skipped

    def entropy_bits(self) -> float:
        """Entropy of independent latents with the running firing rates, in bits a token."""
        return coding.bernoulli_entropy(self.firing_rates).sum().item()

    @override
    def encode(self, x: Tensor) -> EncoderOutput:
        """Codes of hidden states, never sampled.

        Args:
            x: [..., d_in]. One token [d_in] is allowed.

        Returns:
            top_acts [..., m], exactly 0.0 or 1.0; top_indices [..., m]; pre_acts [..., latents].
            m is k, or for activation binary the largest number of latents active on one token. No
            row has an index twice, so that scattering top_acts loses no 1.

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        check_width(x, self.d_in)
        check_finite(x)
        centred = x.to(self.dtype) - self.origin()
        pre = coding.pre_activations(centred, self.encoder.weight.T, self.encoder.bias)
        rows = pre.reshape(-1, self.num_latents)
        codes, index = active_latents(rows, self.log_threshold.exp(), self.rule)
        shape = (*pre.shape[:-1], codes.shape[-1])
        return EncoderOutput(codes.view(shape), index.view(shape), pre)

    def encode_packed(self, x: Tensor) -> Tensor:
        """Codes of encode's x, one bit each, without gradient.

        Returns:
            uint8 [..., latents / 8 rounded up]; coding.unpack turns it into codes.

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        packed = infer_packed(self._inference_encoder(x))
        return packed.view(*x.shape[:-1], packed.shape[-1])

    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """encode's top_acts and top_indices, both [..., m], without gradient.

        If two pre-activations differ by rounding alone, it may pick another than encode does.

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        codes, index = infer_indices(self._inference_encoder(x))
        shape = (*x.shape[:-1], codes.shape[-1])
        return codes.view(shape), index.view(shape)

    def _inference_encoder(self, x: Tensor) -> Encoder:
        check_width(x, self.d_in)
        check_finite(x)
        return self._encoder(x.reshape(-1, self.d_in).to(self.dtype))

    @override
    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of codes [..., m] at latents [..., m], without W_skip."""
        width = top_acts.shape[-1]
        picks = Picks(top_indices.reshape(-1, width), self.num_latents)
        acts = top_acts.reshape(-1, width)
        rows = coding.decode_indices(acts, picks, self.decoder_weight(), self.b_dec)
        return rows.view(*top_acts.shape[:-1], rows.shape[-1])

    # On a GPU sparsify runs forward in bfloat16 autocast, but not encode. This forward has no
    # autocast, so that both give the same codes.
    @override
    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
    ) -> ForwardOutput:
        """Codes, reconstruction and losses of a batch.

        gumbel_binary samples its codes in training mode if gradients are on.

        Args:
            x: [..., d_in].
            y: target [..., d_in]. None takes x.
            dead_mask: bool [latents], latents that AuxK trains.
            total_variance: scalar, summed over tokens. None takes that of y.

        Returns:
            sparsify's ForwardOutput. latent_indices [m] has each latent that fired in the batch of
            all ranks once, and latent_acts [m] is 1. On a GPU latent_indices is [latents], so that
            no step waits for m: places of latents that did not fire repeat one that did. The
            losses on codes (entropy, covariance, dense latents) add to the gradient of fvu, not to
            its value. If the target has no variance (one token, or equal tokens), the three losses
            are NaN and their gradient is 0.

        Raises:
            ValueError: x is not d_in wide, x or y is not finite (on a GPU some steps later), or a
                Trainer's first batch has no token.
        """
        check_width(x, self.d_in)
        if x.ndim != 2:
            rows = x.reshape(-1, self.d_in)
            targets = None if y is None else y.reshape(-1, self.d_in)
            output = self.forward(rows, targets, dead_mask=dead_mask, total_variance=total_variance)
            return output._replace(sae_out=output.sae_out.view(x.shape))
        if not len(x) and (self.progress.first_batch or self.progress.group is None):
            return self._empty_output(x)
        seen = (x,) if y is None else (x, y)
        if self.cfg.skip_non_finite:
            rows = self._finite_rows.of(*seen, step=self.progress.step)
            if rows is not None:
                y = None if y is None else y[rows]
                output = self.forward(
                    x[rows], y, dead_mask=dead_mask, total_variance=total_variance
                )
                sae_out = output.sae_out.new_zeros(x.shape)
                sae_out[rows] = output.sae_out
                return output._replace(sae_out=sae_out)
        else:
            for values in seen:
                self._watch.check(values, self.progress.step)
        x = x.to(self.dtype)
        y = x if y is None else y.to(self.dtype)
        self._start(x, y)
        with seeded(self.progress.noise_seed, self.device):
            if dead_mask is not None or self.cfg.multi_topk:
                encoded, pre = encode_batch(self._encoder(x), noise=self._learns())
            else:
                encoded, pre = encode_codes(self._encoder(x), noise=self._learns()), None
        skip = 0.0 if self.W_skip is None else x @ self.W_skip.mT
        sae_out = encoded.decode(self.decoder_weight(), self.b_dec) + skip
        rates = encoded.firing_rates(self.progress.group)
        if self._learns():
            self._update_firing_rates(rates)
            self._watch_firing(rates, dead_mask)
        residual = y - sae_out
        given = losses.batch_variance(y, total_variance, self.progress, self.cfg.skip_non_finite)
        variance = coding.summed_variance(y, self.progress.group, given)
        fvu = losses.over_variance(losses.summed_square(residual, self.progress), variance)
        extra = losses.regulariser(self.cfg, self.progress, encoded, rates)
        if extra is not None:
            fvu = attach_to_loss(fvu, extra)
            if self.progress.regulariser_share:
                sae_out = attach_to_output(sae_out, extra * self.progress.regulariser_share)
        fired = self._fired(rates)
        return ForwardOutput(
            sae_out,
            torch.ones_like(fired, dtype=sae_out.dtype),
            fired,
            fvu,
            self._auxiliary_loss(pre, dead_mask, residual, variance),
            self._multi_topk_loss(pre, y - skip, variance),
        )

    @override
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Raise ValueError: unit rows would erase the magnitude of the latents."""
        raise ValueError(
            "set_decoder_norm_to_unit_norm: the magnitude of a binary latent lives in its decoder "
            "row. Leave normalize_decoder at False."
        )

    @override
    def save_to_disk(self, path: Path | str) -> None:
        """Write cfg.json and sae.safetensors, both at once (see saving.replacing).

        Raises:
            ValueError: a parameter is not finite. Then nothing is written.
        """
        self.check_saveable()
        with replacing(Path(path)) as new:
            super().save_to_disk(new)

    def check_saveable(self) -> None:
        """Raise ValueError if a step or a parameter was not finite. Waits for a GPU's steps."""
        self._watch.check_now()
        check_parameters(self.named_parameters())

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # The first paper's files have no firing rates.
        state = starting.with_thresholds(self, {"firing_rates": self.firing_rates, **state_dict})
        self.start.loaded = True
        return super().load_state_dict(state, *args, **kwargs)

    def decoder_weight(self) -> Tensor:
        """W_dec [latents, d_in]. ValueError if the coder was loaded without it."""
        if self.W_dec is None:
            raise ValueError("This coder was loaded with decoder=False: it encodes only.")
        return self.W_dec

    def origin(self) -> Tensor:
        """What is subtracted from the input, [d_in]."""
        if not self.cfg.centres():
            return torch.zeros_like(self.b_dec)
        return self.b_dec if self.cfg.encoder_trains_b_dec else self.b_dec.detach()

    def _empty_output(self, x: Tensor) -> ForwardOutput:
        """Forward pass of no tokens [0, d_in]: nothing fires, and all gradients are 0."""
        if self.progress.first_batch:
            raise ValueError(
                "The first batch has no token to train on: exclude_tokens leaves out all of them. "
                "Shuffle the data, raise batch_size, or give fewer exclude_tokens."
            )
        zero = x.new_zeros((), dtype=self.dtype)
        none = sum(parameter.sum() for parameter in self.parameters()) * zero
        sae_out = x.to(self.dtype) + none
        fired = torch.zeros(0, dtype=torch.int64, device=x.device)
        acts, loss = sae_out.new_zeros(0), none.detach()
        return ForwardOutput(sae_out, acts, fired, none + torch.nan, loss, loss)

    def _encoder(self, x: Tensor) -> Encoder:
        origin = self.origin()
        # The origin learns through Encoder.origin, not through the input.
        centred = x - origin.detach()
        weight, bias = self.encoder.weight.T, self.encoder.bias
        return Encoder(centred, weight, bias, self.log_threshold, origin, self.rule)

    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _update_firing_rates(self, rates: Tensor) -> None:
        rates = rates.detach().to(self.firing_rates.dtype)
        # The first batch finds rates of 0, and sets them.
        share = torch.where(self.firing_rates.any(), RATE_UPDATE, 1.0).to(rates)
        self.firing_rates.lerp_(rates, share)

    def _watch_firing(self, rates: Tensor, dead_mask: Tensor | None) -> None:
        if self._collapse_watch.is_due(self.progress.step):
            self._collapse_watch.check(rates, dead_mask, self.progress.step)

    def _start(self, x: Tensor, y: Tensor) -> None:
        """Set the initial parameters on a Trainer's first batch."""
        progress = self.progress
        if self.cfg.skip_non_finite and progress.step == 0:
            starting.mend_start(self, x, y)
        if not progress.fit_start:
            return
        progress.fit_start = False
        if self.start.of_stock:
            starting.start_from_stock(self, x)
        else:
            starting.start_from_data(self, x, y)

    def _fired(self, rates: Tensor) -> Tensor:
        """latent_indices of forward, int64, of firing rates [latents]."""
        if rates.device.type == "cpu":
            return rates.nonzero().flatten()
        # If none fired, repeat the one that fires most: it counts as alive in any case.
        other = torch.where(rates.any(), rates.argmax(), self.firing_rates.argmax())
        return torch.where(rates > 0, torch.arange(len(rates), device=rates.device), other)

    def _auxiliary_loss(
        self, pre: Tensor | None, dead_mask: Tensor | None, residual: Tensor, variance: Tensor
    ) -> Tensor:
        if pre is None or dead_mask is None or not dead_mask.any():
            return residual.new_zeros(())
        margin = pre - self.log_threshold.exp()
        error = coding.auxiliary_error(
            margin, dead_mask, residual, self.decoder_weight(), self.rule
        )
        return losses.over_variance(sum_over_ranks(error, self.progress.group), variance)

    def _multi_topk_loss(self, pre: Tensor | None, target: Tensor, variance: Tensor) -> Tensor:
        if pre is None or not self.cfg.multi_topk:
            return target.new_zeros(())
        decoder = (self.decoder_weight(), self.b_dec)
        error = losses.multi_topk_error(
            pre, target, decoder, self.log_threshold, self.rule, self.progress
        )
        return losses.over_variance(error, variance)
