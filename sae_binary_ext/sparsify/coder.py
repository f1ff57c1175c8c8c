"""A sparse coder of sparsify whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext.coding import (
    INITIAL_THRESHOLD,
    CodeRule,
    CollapseWatch,
    Encoded,
    Encoder,
    FiniteRows,
    FiniteWatch,
    Picks,
    active_latents,
    attach_to_loss,
    attach_to_output,
    auxiliary_error,
    bernoulli_entropy,
    binarise,
    check_finite,
    check_width,
    covariance_penalty,
    decode,
    decode_indices,
    encode_batch,
    encode_codes,
    excess_rate,
    fit_decoder,
    fit_start,
    gather_rows,
    infer_indices,
    infer_packed,
    pre_activations,
    ramp,
    sample_rows,
    sampled_covariance_penalty,
    seeded,
    starting_rate,
    sum_over_ranks,
    summed_variance,
)
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.sparsify.progress import TrainingProgress
from sae_binary_ext.sparsify.skipping import finite_variance, forward_of_rows, mend_start

# Share of the newest batch in the running firing rates.
RATE_UPDATE = 0.01


class BinarySparseCoder(SparseCoder):
    """sparsify's SparseCoder with codes of 0 and 1.

    Parameters, beside sparsify's encoder, W_dec [latents, d_in], b_dec [d_in] and W_skip
    [d_in, d_in]: log_threshold [latents], float32 or wider whatever the coder's dtype. Buffer:
    firing_rates [latents], a running mean over training batches.
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
                math.log(INITIAL_THRESHOLD),
                dtype=torch.promote_types(self.dtype, torch.float32),
                device=device,
            )
        )
        self.register_buffer("firing_rates", torch.zeros_like(self.log_threshold.data))
        self.progress = TrainingProgress()
        self._watch = FiniteWatch()
        self._finite_rows = FiniteRows()
        self._collapse_watch = CollapseWatch()

    @property
    def rule(self) -> CodeRule:
        """Selection and surrogate; the Trainer changes k as it trains."""
        return self.cfg.code_rule()

    @property
    def skipped_tokens(self) -> int:
        """Tokens that skip_non_finite has left out of training so far."""
        return self._finite_rows.skipped

    def entropy_bits(self) -> float:
        """Entropy of the running firing rates, in bits a token, latents taken as independent."""
        return bernoulli_entropy(self.firing_rates).sum().item()

    @override
    def encode(self, x: Tensor) -> EncoderOutput:
        """Codes of hidden states, never sampled.

        Args:
            x: [..., d_in].

        Returns:
            top_acts [..., m], exactly 0.0 or 1.0; top_indices [..., m]; pre_acts [..., latents].
            m is k, or for activation binary the largest number of latents active on one token. No
            index stands twice in a row, so scattering top_acts loses no 1.

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        check_width(x, self.d_in)
        check_finite(x)
        centred = x.to(self.dtype) - self._origin()
        pre = pre_activations(centred, self.encoder.weight.T, self.encoder.bias)
        rows = pre.flatten(0, -2)
        codes, index = active_latents(rows, self.log_threshold.exp(), self.rule)
        shape = (*pre.shape[:-1], codes.shape[-1])
        return EncoderOutput(codes.view(shape), index.view(shape), pre)

    def encode_packed(self, x: Tensor) -> Tensor:
        """Codes of hidden states, a bit each, never sampled and without gradient.

        Args:
            x: [..., d_in].

        Returns:
            uint8 [..., latents / 8 rounded up]; coding.unpack turns it into codes.

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        return infer_packed(self._inference_encoder(x))

    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and latents that encode returns, without its pre-activations or a gradient.

        Sums in float32 round, and not always as encode's: of pre-activations that are equal but for
        that it may pick another.

        Args:
            x: [..., d_in].

        Returns:
            top_acts [..., m] and top_indices [..., m].

        Raises:
            ValueError: x is not d_in wide, or not finite.
        """
        return infer_indices(self._inference_encoder(x))

    def _inference_encoder(self, x: Tensor) -> Encoder:
        check_width(x, self.d_in)
        check_finite(x)
        return self._encoder(x.to(self.dtype))

    @override
    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of codes [..., m] at latents [..., m], without W_skip."""
        picks = Picks(top_indices.flatten(0, -2), self.num_latents)
        rows = decode_indices(top_acts.flatten(0, -2), picks, self._decoder(), self.b_dec)
        return rows.unflatten(0, top_acts.shape[:-1])

    # sparsify wraps its forward in bfloat16 autocast on a GPU. Not so here: encode, which runs
    # outside of it, would then give other codes than those trained on.
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

        gumbel_binary samples in training mode where gradients are on.

        Args:
            x: [tokens, d_in].
            y: [tokens, d_in], the target; x itself where None.
            dead_mask: bool [latents], latents that AuxK trains.
            total_variance: scalar, summed over tokens; that of y where None.

        Returns:
            sparsify's ForwardOutput. latent_indices [latents] names the latents that fired in the
            batch, of all ranks; the places of those that did not repeat the most frequent one.
            latent_acts [latents] is 1. The gradient of fvu is that of fvu plus the losses on the
            codes alone (entropy, covariance, dense latents), its value that of fvu alone.

        Raises:
            ValueError: x is not d_in wide, or x or y is not finite (on a GPU some steps later).
        """
        check_width(x, self.d_in)
        seen = (x,) if y is None else (x, y)
        if self.cfg.skip_non_finite:
            rows = self._finite_rows.of(*seen, step=self.progress.step)
            if rows is not None:
                pass_on = partial(self.forward, dead_mask=dead_mask, total_variance=total_variance)
                return forward_of_rows(rows, x, y, pass_on)
        else:
            for values in seen:
                self._watch.check(values, self.progress.step)
        x = x.to(self.dtype)
        y = x if y is None else y.to(self.dtype)
        if self.cfg.skip_non_finite:
            total_variance = finite_variance(y, total_variance, self.progress.parts)
            if self.progress.step == 0:
                mend_start(self, x, y, self.progress.group)
        if self.progress.fit_start:
            self.progress.fit_start = False
            self._fit_start(x, y)
        with seeded(self.progress.noise_seed, self.device):
            if dead_mask is not None or self.cfg.multi_topk:
                encoded, pre = encode_batch(self._encoder(x), noise=self._learns())
            else:
                encoded, pre = encode_codes(self._encoder(x), noise=self._learns()), None
        skip = 0.0 if self.W_skip is None else x @ self.W_skip.mT
        sae_out = encoded.decode(self._decoder(), self.b_dec) + skip
        rates = encoded.firing_rates(self.progress.group)
        if self._learns():
            self._update_firing_rates(rates)
            self._watch_firing(rates, dead_mask)
        residual = y - sae_out
        scale = summed_variance(y, self.progress.group, total_variance)
        fvu = self._summed_square(residual) / scale
        extra = self._regulariser(encoded, rates)
        if extra is not None:
            fvu = attach_to_loss(fvu, extra)
            if self.progress.regulariser_share:
                sae_out = attach_to_output(sae_out, extra * self.progress.regulariser_share)
        # A list of the firings alone would have no length that a GPU's host knows in advance.
        fired = torch.where(rates > 0, torch.arange(len(rates), device=x.device), rates.argmax())
        return ForwardOutput(
            sae_out,
            torch.ones_like(fired, dtype=sae_out.dtype),
            fired,
            fvu,
            self._auxiliary_loss(pre, dead_mask, residual) / scale,
            self._multi_topk_error(pre, y - skip) / scale,
        )

    @override
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Refused: unit rows would erase the magnitude of the latents.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "set_decoder_norm_to_unit_norm: the magnitude of a binary latent lives in its decoder "
            "row. Leave normalize_decoder at False."
        )

    @override
    def save_to_disk(self, path: Path | str) -> None:
        """Write cfg.json and sae.safetensors, both at once (see saving.replacing).

        Raises:
            ValueError: weights were spoilt by values that are not finite.
        """
        self._watch.check_now()
        with replacing(Path(path)) as new:
            super().save_to_disk(new)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # The first paper's files know no running rates.
        rates = {"firing_rates": self.firing_rates}
        return super().load_state_dict({**rates, **state_dict}, *args, **kwargs)

    def _decoder(self) -> Tensor:
        if self.W_dec is None:
            raise ValueError("This coder was loaded with decoder=False: it encodes only.")
        return self.W_dec

    def _origin(self) -> Tensor:
        """What is subtracted from the input, [d_in]."""
        if not self.cfg.centres():
            return torch.zeros_like(self.b_dec)
        return self.b_dec if self.cfg.encoder_trains_b_dec else self.b_dec.detach()

    def _encoder(self, x: Tensor) -> Encoder:
        origin = self._origin()
        # The origin learns through the encoder's field, not through the input.
        centred = x - origin.detach()
        weight, bias = self.encoder.weight.T, self.encoder.bias
        return Encoder(centred, weight, bias, self.log_threshold, origin, self.rule)

    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _update_firing_rates(self, rates: Tensor) -> None:
        rates = rates.detach().to(self.firing_rates.dtype)
        # All of the first batch's, which finds none.
        share = torch.where(self.firing_rates.any(), RATE_UPDATE, 1.0).to(rates)
        self.firing_rates.lerp_(rates, share)

    def _watch_firing(self, rates: Tensor, dead_mask: Tensor | None) -> None:
        if self._collapse_watch.is_due(self.progress.step):
            self._collapse_watch.check(rates, dead_mask, self.progress.step)

    @torch.no_grad()
    def _fit_start(self, x: Tensor, y: Tensor) -> None:
        rows = gather_rows(sample_rows(x - self._origin()), self.progress.group)
        rate = self.cfg.initial_firing_rate or starting_rate(self.rule, self.num_latents)
        start = fit_start(rows, self.encoder.weight.T, self.log_threshold, self.rule, rate)
        self.encoder.weight.copy_(start.encoder_weight.T)
        self.encoder.bias.copy_(start.encoder_bias)
        if not self.cfg.transcode:
            self._decoder().copy_(start.decoder_weight)
            return
        pre = pre_activations(rows, start.encoder_weight, start.encoder_bias)
        codes = binarise(pre, self.log_threshold, self.rule)
        targets = gather_rows(sample_rows(y), self.progress.group)
        weight, bias = fit_decoder(codes, targets)
        self._decoder().copy_(weight)
        self.b_dec.copy_(bias)

    def _summed_square(self, error: Tensor) -> Tensor:
        return sum_over_ranks(error.square().sum(), self.progress.group)

    def _regulariser(self, encoded: Encoded, rates: Tensor) -> Tensor | None:
        """Losses on the codes alone, in units of FVU; None where none is in force."""
        cfg = self.cfg
        share = ramp(self.progress.step, cfg.entropy_start_step, cfg.entropy_warm_up_steps)
        losses: list[Tensor] = []
        if share and cfg.entropy_alpha:
            losses.append(share * cfg.entropy_alpha * bernoulli_entropy(rates).sum())
        if share and cfg.covariance_alpha:
            penalty = self._covariance_penalty(encoded.dense())
            losses.append(share * cfg.covariance_alpha * penalty)
        if cfg.dense_alpha:
            losses.append(cfg.dense_alpha * excess_rate(rates, cfg.dense_rate))
        return torch.stack(losses).sum() if losses else None

    def _covariance_penalty(self, codes: Tensor) -> Tensor:
        sample, group = self.cfg.covariance_sample, self.progress.group
        if sample:
            return sampled_covariance_penalty(codes, sample, self.progress.step, group)
        return covariance_penalty(codes, group)

    def _auxiliary_loss(
        self, pre: Tensor | None, dead_mask: Tensor | None, residual: Tensor
    ) -> Tensor:
        if pre is None or dead_mask is None or not dead_mask.any():
            return residual.new_zeros(())
        margin = pre - self.log_threshold.exp()
        error = auxiliary_error(margin, dead_mask, residual, self._decoder(), self.rule)
        return sum_over_ranks(error, self.progress.group)

    def _multi_topk_error(self, pre: Tensor | None, target: Tensor) -> Tensor:
        if pre is None or not self.cfg.multi_topk:
            return target.new_zeros(())
        wider = replace(self.rule, k=min(4 * self.cfg.k, self.num_latents))
        codes = binarise(pre, self.log_threshold, wider)
        return self._summed_square(target - decode(codes, self._decoder(), self.b_dec))
