"""The architecture "binary": an autoencoder whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checks import check_rate, check_training_dtype
from sae_binary_ext.coding.encode import Encoder, check_width
from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.coding.forms.encoded import DenseCodes, Encoded, encode_codes
from sae_binary_ext.coding.initialization import fit_start, starting_rate
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saelens.binary_code import BinaryCodeConfig, BinaryCoder
from sae_binary_ext.saelens.firing import FiringLossFields
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE, TrainingFields, fired_rates


@dataclass
class BinarySAEConfig(BinaryCodeConfig):
    """Config of a trained binary autoencoder; the fields are those of BinaryCodeConfig."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary"


class BinarySAE(BinaryCoder):
    """A trained binary autoencoder, for inference."""

    cfg: BinarySAEConfig


@dataclass
class BinaryTrainingSAEConfig(
    TrainingFields, FiringLossFields, BinaryCodeConfig, TrainingSAEConfig
):
    """Config for training a binary autoencoder; the bases have further fields.

    Args:
        initial_firing_rate: firing rate that encoder biases are set to on the first batch, between
            0 and 1. None takes 0.05, or k / d_sae where that is more; 0.02 for threshold.
        decoder_init_norm: norm of the decoder rows when training starts. None scales them to the
            least squared error on the first batch.
        surrogate_latents: which latents learn from a token: "selected", those that its selection
            picks, or, with topk, "near", the 2k nearest to firing, or "all", which compete for the
            k places (see coding.competing). None takes near for topk, selected for others.
        encoder_trains_b_dec: whether b_dec, which an autoencoder subtracts from its input, learns
            through the encoder too, as stock coders' does. Its gradient there is a sum over all
            latents, and more of them end dead or dense.
    """

    initial_firing_rate: float | None = None
    decoder_init_norm: float | None = None
    surrogate_latents: str | None = None
    encoder_trains_b_dec: bool = False

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_firing_rate is not None:
            check_rate(initial_firing_rate=self.initial_firing_rate)
        check_training_dtype(self.dtype)
        self.check_firing_fields()
        if self.encoder_trains_b_dec and not self.apply_b_dec_to_input:
            raise ValueError(
                "encoder_trains_b_dec=True with apply_b_dec_to_input=False: the encoder does not "
                "see b_dec. Leave encoder_trains_b_dec out."
            )

    @override
    def code_rule(self) -> CodeRule:
        """The fields as the mathematics takes them."""
        rule = super().code_rule()
        learners = self.surrogate_latents or rule.kind.default_learners
        return replace(rule, surrogate_latents=learners)

    def starting_rate(self) -> float:
        """Firing rate the encoder biases are set to on the first batch."""
        if self.initial_firing_rate is not None:
            return self.initial_firing_rate
        return starting_rate(self.code_rule(), self.d_sae)


class BinaryTrainingSAE(BinaryCoder, FirstBatchTrainingSAE):
    """A binary autoencoder in training.

    The first batch sets b_dec to its mean, the encoder to unit-variance pre-activations and the
    biases to the starting rate (see coding.initialization), unless weights were loaded before.
    """

    cfg: BinaryTrainingSAEConfig

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, sampled for gumbel, and pre-activations, both [..., d_sae] with gradient."""
        return self.codes_and_pre_activations(x, noise=self.training)

    @override
    def step_losses(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Losses of a batch, its codes in the cheapest form where nothing looks on.

        Returns:
            SAELens' output. In the cheapest form its feature_acts and hidden_pre are without
            gradient, and sparse COO where few latents fire; hidden_pre then holds the
            pre-activations of the latents that may fire.
        """
        if not self._may_shorten(step_input.sae_in):
            return super().step_losses(step_input)
        x, target = self._input_and_target(step_input.sae_in)
        # Without gradient: b_dec learns through the encoder's origin (see coding.encode).
        with torch.no_grad():
            centred = self._checked_input(x)
        codes, pre = self._encode_batch(self._encoder(centred))
        output = self._decode_batch(codes, x)
        error = self.mse_loss_fn(output, target).sum(dim=-1).mean()
        step_input = replace(step_input, sae_in=target)
        losses = {"mse_loss": error, **self.code_losses(step_input, codes, pre, output)}
        feature_acts, hidden_pre = codes.for_host()
        loss = torch.stack(list(losses.values())).sum()
        return TrainStepOutput(target, output, feature_acts, hidden_pre, loss, losses)

    def code_losses(
        self, step_input: TrainStepInput, codes: Encoded, pre: Tensor | None, output: Tensor
    ) -> dict[str, Tensor]:
        """Losses beside the reconstruction's, by name.

        Args:
            step_input: SAELens' own; sae_in is [tokens, d_out], what is reconstructed.
            codes: of the batch.
            pre: pre-activations [tokens, d_sae], where the step made them.
            output: [tokens, d_out], the reconstruction.
        """
        dead = step_input.dead_neuron_mask
        return self.cfg.firing_losses(step_input.sae_in, self.b_enc, dead, codes.firing_rates)

    @override
    def _origin(self) -> Tensor:
        return super()._origin() if self.cfg.encoder_trains_b_dec else super()._origin().detach()

    @override
    def _checked_input(self, x: Tensor) -> Tensor:
        centred = super()._checked_input(x)
        subtracts = self.cfg.apply_b_dec_to_input and torch.is_grad_enabled()
        if self.cfg.encoder_trains_b_dec or not subtracts:
            return centred
        # Plus zeros, whose gradient takes back b_dec's.
        origin = super()._origin()
        return centred + (origin - origin.detach())

    def _input_and_target(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return batch, batch

    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor | None]:
        return encode_codes(encoder, noise=self.training), None

    def _decode_batch(self, codes: Encoded, x: Tensor) -> Tensor:
        return self._finish_decoding(codes.decode(self.W_dec, self.b_dec))

    def _may_shorten(self, batch: Tensor) -> bool:
        """Whether a gradient is wanted, and no hook, compiler or subclass looks on."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        hooks = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post)
        hooked = any(hook._forward_hooks or hook._backward_hooks for hook in hooks)
        ours = all(
            getattr(type(self), name).__module__.startswith(__package__ or "")
            for name in ("encode_with_hidden_pre", "decode", "calculate_aux_loss")
        )
        return ours and not hooked and batch.ndim == 2 and not batch.requires_grad

    @override
    def encode(self, x: Tensor) -> Tensor:
        # TrainingSAE would go through encode_with_hidden_pre, which samples.
        return BinaryCoder.encode(self, x)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        codes = DenseCodes(len(feature_acts), self.cfg.d_sae, feature_acts, hidden_pre)
        return self.code_losses(step_input, codes, hidden_pre, sae_out)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        codes = output.feature_acts.detach()
        output.metrics["code_entropy_bits"] = lambda: bernoulli_entropy(fired_rates(codes)).sum()
        return output

    @override
    def _apply_to_parameters(self, *args: Any, **kwargs: Any) -> Any:
        # Module.to() casts every parameter; the threshold goes on learning in float32, unrounded.
        before = self.log_threshold.data
        out = super()._apply_to_parameters(*args, **kwargs)
        after = self.log_threshold.data
        source = after if before.is_meta else before
        wide = torch.promote_types(after.dtype, torch.float32)
        self.log_threshold.data = source.to(after.device, wide)
        return out

    @override
    @torch.no_grad()
    def fit_to_first_batch(self, batch: Tensor) -> None:
        check_width(batch, self.cfg.d_in)
        normalised = self.run_time_activation_norm_fn_in(batch.to(self.dtype))
        self.b_dec.copy_(normalised.mean(0))
        start = fit_start(
            normalised - self._origin(),
            self.W_enc,
            self.log_threshold,
            self.rule,
            self.cfg.starting_rate(),
        )
        self.W_enc.copy_(start.encoder_weight)
        self.b_enc.copy_(start.encoder_bias)
        if self.cfg.decoder_init_norm is None:
            self.W_dec.copy_(start.decoder_weight)
