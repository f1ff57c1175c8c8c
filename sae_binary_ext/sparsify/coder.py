"""A sparse coder of sparsify whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
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
from sae_binary_ext.coding.forms import (
    Encoded,
    encode_batch,
    encode_codes,
    infer_indices,
    infer_packed,
)
from sae_binary_ext.coding.forms.margins import active_latents
from sae_binary_ext.coding.kernels import Picks, seeded, sum_over_ranks
from sae_binary_ext.coding.kernels.processor import certainly_none
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify import losses, starting
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.training.attach import attach_to_loss, attach_to_output
from sae_binary_ext.training.collapse import CollapseWatch
from sae_binary_ext.training.derived import DerivesSettings
from sae_binary_ext.training.finite import FiniteRows, FiniteWatch, check_finite, check_parameters

# Weight of the newest batch in the running mean of the firing rates.
RATE_UPDATE = 0.01


class BinarySparseCoder(DerivesSettings, SparseCoder):
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
        cfg.check_groups(self.num_latents)
        if cfg.tied_decoder and decoder:
            self.register_parameter("W_dec", self.encoder.get_parameter("weight"))
        wide = torch.promote_types(self.dtype, torch.float32)
        rates = torch.zeros(self.num_latents, dtype=wide, device=device)
        self.register_buffer("firing_rates", rates)
        start = math.log(coding.INITIAL_THRESHOLD)
        self.log_threshold = nn.Parameter(torch.full_like(rates, start))
        self.progress = losses.TrainingProgress()
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
        """Codes of hidden states x [..., d_in]. The codes of gumbel_binary are not sampled here.

        Returns:
            top_acts [..., m], exactly 0.0 or 1.0; top_indices [..., m]; pre_acts [..., latents].
            m is k, or for activation binary the largest number of latents active on one token. No
            row has an index twice, so scattering top_acts keeps each 1.

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
        """The codes of encode, one bit each, without gradient: uint8 [..., latents / 8 rounded up].

        coding.unpack turns the bits into 0.0 and 1.0. Raises the same errors as encode.
        """
        packed = infer_packed(self._inference_encoder(x))
        return packed.view(*x.shape[:-1], packed.shape[-1])

    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The top_acts and top_indices of encode, both [..., m], without gradient.

        If pre-activations differ only by rounding, this may select another latent than encode.
        Raises the same errors as encode.
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

    # On a GPU, sparsify's own forward uses bfloat16 autocast, but its encode does not. This class
    # uses no autocast, so that forward and encode give the same codes.
    @override
    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
    ) -> ForwardOutput:
        """Codes, reconstruction and losses of a batch x [..., d_in], as sparsify's ForwardOutput.

        gumbel_binary samples its codes in training mode if gradients are on.

        Args:
            y: target [..., d_in]. If y is None, x is the target.
            dead_mask: bool [latents], marks the dead latents, which AuxK trains.
            total_variance: variance of the target summed over tokens, or None for y's.

        Returns:
            latent_indices [m] lists each latent that fired on any rank once, and latent_acts [m] is
            all ones. On a GPU, m is the number of latents, so that no step waits for a count:
            latent_indices repeats one of the latents that fired. The losses on codes (entropy,
            covariance, dense latents) add to the gradient of fvu, not to its value. If the target
            has no variance, the three losses are NaN and their gradient is 0.

        Raises:
            ValueError: x is not d_in wide, x or y is not finite (on a GPU some steps later), or a
                Trainer's first batch has no token.
        """
        check_width(x, self.d_in)
        if x.ndim != 2:
            y = None if y is None else y.reshape(-1, self.d_in)
            output = self.forward(
                x.reshape(-1, self.d_in), y, dead_mask=dead_mask, total_variance=total_variance
            )
            return output._replace(sae_out=output.sae_out.view(x.shape))
        progress = self.progress
        if not len(x) and (progress.first_batch or progress.group is None):
            return self._empty_output(x)
        seen = (x,) if y is None else (x, y)
        if not self.cfg.skip_non_finite:
            for values in seen:
                self._watch.check(values, progress.step)
        elif (rows := self._finite_rows.of(*seen, step=progress.step)) is not None:
            y = None if y is None else y[rows]
            output = self.forward(x[rows], y, dead_mask=dead_mask, total_variance=total_variance)
            sae_out = output.sae_out.new_zeros(x.shape)
            sae_out[rows] = output.sae_out
            return output._replace(sae_out=sae_out)
        x = x.to(self.dtype)
        y = x if y is None else y.to(self.dtype)
        self._start(x, y)
        with seeded(progress.noise_seed, self.device):
            encoded, pre = self._encode_batch(x, dead_mask)
        skip = 0.0 if self.W_skip is None else x @ self.W_skip.mT
        sae_out = encoded.decode(self.decoder_weight(), self.b_dec) + skip
        rates = encoded.firing_rates(progress.group)
        if self._learns():
            self._note_firing(rates, dead_mask)
        residual = y - sae_out
        given = losses.batch_variance(y, total_variance, progress, self.cfg.skip_non_finite)
        variance = coding.summed_variance(y, progress.group, given)
        error = losses.summed_square(residual, progress)
        if self.cfg.matryoshka:
            given = encoded.dense(), self.decoder_weight(), self.b_dec, self.cfg.matryoshka_groups
            outputs = coding.prefix_outputs(*given)
            error = losses.matryoshka_square(self.cfg, progress, outputs, y - skip, error)
        fvu = losses.over_variance(error, variance)
        extra = self._code_loss(encoded, pre, rates)
        if extra is not None:
            fvu = attach_to_loss(fvu, extra)
            if progress.regulariser_share:
                sae_out = attach_to_output(sae_out, extra * progress.regulariser_share)
        auxk, multi_topk = residual.new_zeros(()), y.new_zeros(())
        if pre is not None and dead_mask is not None and not certainly_none(dead_mask):
            auxk = self._auxiliary_loss(pre, dead_mask, residual, variance)
        if pre is not None and self.cfg.multi_topk:
            multi_topk = self._multi_topk_loss(pre, y - skip, variance)
        fired = self._fired(rates)
        acts = torch.ones_like(fired, dtype=sae_out.dtype)
        return ForwardOutput(sae_out, acts, fired, fvu, auxk, multi_topk)

    @override
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Always an error: unit rows would erase the magnitude of the latents."""
        raise ValueError(
            "set_decoder_norm_to_unit_norm: the magnitude of a binary latent lives in its decoder "
            "row. Leave normalize_decoder at False."
        )

    @override
    def save_to_disk(self, path: Path | str) -> None:
        """Write both files at once. If a parameter is not finite, raise ValueError instead."""
        self.check_saveable()
        with replacing(Path(path)) as new:
            super().save_to_disk(new)

    def check_saveable(self) -> None:
        """Raise ValueError if a batch or a parameter is not finite. Waits for the GPU to finish."""
        self._watch.check_now()
        check_parameters(self.named_parameters())

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # The first paper's files have no firing rates.
        state = starting.with_thresholds(self, {"firing_rates": self.firing_rates, **state_dict})
        state = starting.with_tied_encoder(self, state)
        self.start.loaded = True
        return super().load_state_dict(state, *args, **kwargs)

    def decoder_weight(self) -> Tensor:
        """W_dec [latents, d_in]. ValueError if the coder was loaded without a decoder."""
        if self.W_dec is None:
            raise ValueError("This coder was loaded with decoder=False: it encodes only.")
        return self.W_dec

    def origin(self) -> Tensor:
        """The vector [d_in] that is subtracted from the input."""
        if not self.cfg.centres():
            return torch.zeros_like(self.b_dec)
        return self.b_dec if self.cfg.encoder_trains_b_dec else self.b_dec.detach()

    def _empty_output(self, x: Tensor) -> ForwardOutput:
        """The output for x of no tokens [0, d_in]: no latent fires, and all gradients are 0."""
        if self.progress.first_batch:
            raise ValueError(
                "The first batch has no token to train on: exclude_tokens leaves out all of them. "
                "Shuffle the data, raise batch_size, or give fewer exclude_tokens."
            )
        total = sum(parameter.sum() for parameter in self.parameters())
        none = total * x.new_zeros((), dtype=self.dtype)
        sae_out, loss = x.to(self.dtype) + none, none.detach()
        fired = torch.zeros(0, dtype=torch.int64, device=x.device)
        return ForwardOutput(sae_out, sae_out.new_zeros(0), fired, none + torch.nan, loss, loss)

    def _encoder(self, x: Tensor) -> Encoder:
        origin = self.origin()
        # The gradient of the origin flows through Encoder.origin, not through the input.
        centred = x - origin.detach()
        weight, bias = self.encoder.weight.T, self.encoder.bias
        return Encoder(centred, weight, bias, self.log_threshold, origin, self.rule)

    def _learns(self) -> bool:
        """Whether forward is a step of training."""
        return self.training and torch.is_grad_enabled()

    def _encode_batch(self, x: Tensor, dead_mask: Tensor | None) -> tuple[Encoded, Tensor | None]:
        """Codes of x [tokens, d_in], and pre-activations [tokens, latents] if a loss needs them."""
        if dead_mask is not None or self.cfg.multi_topk:
            return encode_batch(self._encoder(x), noise=self._learns())
        return encode_codes(self._encoder(x), noise=self._learns()), None

    def _code_loss(self, encoded: Encoded, pre: Tensor | None, rates: Tensor) -> Tensor | None:
        """The loss on codes that adds to the gradient of the FVU, a scalar, or None without one.

        encoded and pre are those of _encode_batch. rates, [latents], are over all ranks.
        """
        start, warm_up = map(self.setting, ("entropy_start_step", "entropy_warm_up_steps"))
        share = coding.ramp(self.progress.step, start, warm_up)
        return losses.regulariser(self.cfg, self.progress, encoded, rates, share)

    def _note_firing(self, rates: Tensor, dead_mask: Tensor | None) -> None:
        """Update the running firing rates, and look for collapsed codes."""
        own = rates.detach().to(self.firing_rates.dtype)
        # Running firing rates are 0 before the first batch, which sets them.
        share = torch.where(self.firing_rates.any(), RATE_UPDATE, 1.0).to(own)
        self.firing_rates.lerp_(own, share)
        if self._collapse_watch.is_due(self.progress.step):
            self._collapse_watch.check(rates, dead_mask, self.progress.step)

    def _start(self, x: Tensor, y: Tensor) -> None:
        """Set the initial parameters on a Trainer's first batch."""
        fits, self.progress.fit_start = self.progress.fit_start, False
        if self.cfg.skip_non_finite and self.progress.step == 0:
            starting.mend_start(self, x, y)
        if fits and self.start.of_stock:
            starting.start_from_stock(self, x)
        elif fits:
            starting.start_from_data(self, x, y)

    def _fired(self, rates: Tensor) -> Tensor:
        """The latent_indices that forward returns, int64, for firing rates [latents]."""
        if rates.device.type == "cpu":
            return rates.nonzero().flatten()
        # If no latent fired, repeat the latent that fires most: it counts as alive anyway.
        other = torch.where(rates.any(), rates.argmax(), self.firing_rates.argmax())
        return torch.where(rates > 0, torch.arange(len(rates), device=rates.device), other)

    def _auxiliary_loss(
        self, pre: Tensor, dead_mask: Tensor, residual: Tensor, variance: Tensor
    ) -> Tensor:
        """FVU of the residual [tokens, d_in] reconstructed by dead latents (AuxK)."""
        margin, weight = pre - self.log_threshold.exp(), self.decoder_weight()
        error = coding.auxiliary_error(margin, dead_mask, residual, weight, self.rule)
        return losses.over_variance(sum_over_ranks(error, self.progress.group), variance)

    def _multi_topk_loss(self, pre: Tensor, target: Tensor, variance: Tensor) -> Tensor:
        """FVU of a reconstruction from 4k latents instead of k."""
        rule = replace(self.rule, k=min(4 * self.rule.k, self.num_latents))
        codes = coding.binarise(pre, self.log_threshold, rule)
        error = target - coding.decode(codes, self.decoder_weight(), self.b_dec)
        return losses.over_variance(losses.summed_square(error, self.progress), variance)
