"""The architecture "binary": an autoencoder whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from sae_lens.saes.sae import (
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from simple_parsing import choice
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from sae_binary_ext.coding.checks import check_layer_norm, check_rate, check_training_dtype
from sae_binary_ext.coding.decode import decode
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.encoded import DenseCodes, Encoded, encode_deferring
from sae_binary_ext.coding.entropy import firing_rates, minibatch_entropy
from sae_binary_ext.coding.inference import infer_indices, infer_packed
from sae_binary_ext.coding.initialization import INITIAL_THRESHOLD, fit_start, starting_rate
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule, learning_by_default
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.saelens.firing import FiringLossFields
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE, TrainingFields
from sae_binary_ext.saelens.saving import SavedAtOnce


@dataclass
class BinaryCodeConfig(SAEConfig):
    """The fields every binary coder adds to SAELens' own.

    Args:
        selection: which latents may fire. topk: the k largest of each token; groupmax: the largest
            of each of k contiguous groups; threshold: any above its threshold; gumbel: exactly one
            of each of k groups, sampled while training.
        k: latents a token at most (topk) or number of groups (groupmax, gumbel). Not used by
            threshold.
        surrogate: gradient of the 0/1 step: sigmoid, rectangle, reste or identity.
        surrogate_temperature: width of the surrogate, in units of the pre-activation, whose
            standard deviation is 1 when training starts.
    """

    selection: str = choice(*SELECTIONS, default="topk")
    k: int = 32
    surrogate: str = choice(*SURROGATES, default="sigmoid")
    surrogate_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.code_rule().check_latents(self.d_sae)
        check_layer_norm(self.normalize_activations, self.d_in)

    def code_rule(self) -> CodeRule:
        """The fields above as the mathematics takes them."""
        return CodeRule(self.selection, self.k, self.surrogate, self.surrogate_temperature)


@dataclass
class BinarySAEConfig(BinaryCodeConfig):
    """Config of a trained binary autoencoder; the fields are those of BinaryCodeConfig."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary"


class BinaryCoder(SavedAtOnce):
    """Encoder, threshold and decoder that the inference and training classes share.

    Parameters, beside SAELens' W_enc [d_in, d_sae], W_dec [d_sae, d_in] and b_dec [d_in]:
    b_enc [d_sae] and log_threshold [d_sae]. A latent fires where its pre-activation exceeds
    exp(log_threshold) and its selection lets it.
    """

    b_enc: nn.Parameter
    log_threshold: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.rule: CodeRule = self.cfg.code_rule()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
        # At least float32 whatever the coder's dtype: an optimiser's step rounds away in bfloat16.
        self.log_threshold = nn.Parameter(
            torch.full(
                (self.cfg.d_sae,),
                math.log(INITIAL_THRESHOLD),
                dtype=torch.promote_types(self.dtype, torch.float32),
                device=self.device,
            )
        )

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Codes of hidden states, never sampled.

        Args:
            x: [..., d_in], or what reshape_activations turns into it.

        Returns:
            [..., d_sae] in the coder's dtype, exactly 0.0 or 1.0.

        Raises:
            ValueError: x is not d_in wide.
        """
        return self.codes_and_pre_activations(x, noise=False)[0]

    def encode_packed(self, x: Tensor) -> Tensor:
        """Codes of hidden states, a bit each, without hooks, gradient or an array of codes.

        Args:
            x: [..., d_in], or what reshape_activations turns into it.

        Returns:
            uint8 [..., d_sae / 8 rounded up]; coding.unpack turns it into codes.

        Raises:
            ValueError: x is not d_in wide.
        """
        return infer_packed(self._encoder(self._checked_input(x)))

    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in index form, without hooks, gradient or an array of codes.

        Sums in float32 round, and not always as encode's: of pre-activations that are equal but for
        that it may pick another.

        Args:
            x: [..., d_in], or what reshape_activations turns into it.

        Returns:
            Codes, 0.0 or 1.0, and the latents they belong to, both [..., m]. m is k, or for
            threshold the largest number active on one token. No latent stands twice in a row.

        Raises:
            ValueError: x is not d_in wide.
        """
        return infer_indices(self._encoder(self._checked_input(x)))

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of codes [..., d_sae]."""
        return self._finish_decoding(decode(feature_acts, self.W_dec, self.b_dec))

    @override
    def fold_W_dec_norm(self) -> None:
        """Refused: a code is 0 or 1, so nothing can take up the norm of its decoder row.

        Raises:
            NotImplementedError: always. SAELens' own coders that cannot fold raise it, and tools
                such as sae-bench go on without folding where they meet it.
        """
        raise NotImplementedError(
            "fold_W_dec_norm: the magnitude of a binary latent lives in its decoder row, and its "
            "code cannot be rescaled to make up for a normalised row. Load with "
            "fold_W_dec_norm=False; the row norms are sae.W_dec.norm(dim=-1)."
        )

    def codes_and_pre_activations(self, x: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """Codes, each [..., d_sae], and what they were made of; noise samples those of gumbel."""
        centred = self._checked_input(x)
        pre = self.hook_sae_acts_pre(pre_activations(centred, self.W_enc, self.b_enc))
        codes = binarise(pre, self._rounded_log_threshold(), self.rule, noise)
        return self.hook_sae_acts_post(codes), pre

    def _finish_decoding(self, reconstruction: Tensor) -> Tensor:
        reconstruction = self.hook_sae_recons(reconstruction)
        reconstruction = self.run_time_activation_norm_fn_out(reconstruction)
        return self.reshape_fn_out(reconstruction, self.d_head)

    def _checked_input(self, x: Tensor) -> Tensor:
        check_width(x.flatten(-2) if self.hook_z_reshaping_mode else x, self.cfg.d_in)
        return self.process_sae_in(x)

    def _encoder(self, centred: Tensor) -> Encoder:
        return Encoder(
            centred,
            self.W_enc,
            self.b_enc,
            self._rounded_log_threshold(),
            self._origin(),
            self.rule,
        )

    def _origin(self) -> Tensor:
        """What is subtracted from the input, [d_in]."""
        return self.b_dec * self.cfg.apply_b_dec_to_input

    def _rounded_log_threshold(self) -> Tensor:
        # SAELens' loaders cast every tensor to the coder's dtype. Rounding the threshold to that
        # dtype here too makes the saved coder agree with the one in training, bit for bit.
        dtype = self.b_enc.dtype
        return self.log_threshold.to(dtype).to(torch.promote_types(dtype, torch.float32))


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
        learns = self.surrogate_latents or learning_by_default(self.selection)
        return replace(super().code_rule(), surrogate_latents=learns)

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

    def __init__(self, cfg: BinaryTrainingSAEConfig, use_error_term: bool = False) -> None:
        # Codes of a step to their cheaper form while they live: SAELens hands decode dense ones.
        self._cheaper_forms: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        super().__init__(cfg, use_error_term)

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, sampled for gumbel, and pre-activations, made when first read; [..., d_sae]."""
        if x.ndim != 2 or x.requires_grad or not self._may_shorten():
            return self.codes_and_pre_activations(x, noise=self.training)
        # The same values by a shorter way back: b_dec learns through origin (see coding.encode).
        with torch.no_grad():
            centred = self._checked_input(x)
        encoded, pre = self._encode_batch(self._encoder(centred))
        codes = encoded.deferred()
        if not isinstance(encoded, DenseCodes):
            self._cheaper_forms[codes] = (encoded, codes._version)
        return codes, pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of codes [..., d_sae]."""
        encoded = self._cheaper_form(feature_acts)
        if encoded is None:
            return super().decode(feature_acts)
        return self._finish_decoding(encoded.decode(self.W_dec, self.b_dec))

    def firing_rates(self, codes: Tensor) -> Tensor:
        """Mean code of each latent over a training batch, [d_sae], with gradient.

        Args:
            codes: [tokens, d_sae]; least work where they are what encode_with_hidden_pre returned
                and decode was given.
        """
        encoded = self._cheaper_form(codes)
        return firing_rates(codes) if encoded is None else encoded.firing_rates()

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

    def _cheaper_form(self, codes: Tensor) -> Encoded | None:
        known = cast(tuple[Encoded, int] | None, self._cheaper_forms.get(codes))
        # Codes changed in place since (an ablation, say) no longer have that form.
        return known[0] if known is not None and known[1] == codes._version else None

    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor]:
        return encode_deferring(encoder, noise=self.training)

    def _may_shorten(self) -> bool:
        """Whether a gradient is wanted and neither a hook nor a compiler looks on."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        hooks = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post)
        return not any(hook._forward_hooks or hook._backward_hooks for hook in hooks)

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
        return self.cfg.firing_losses(
            step_input.sae_in,
            self.b_enc,
            step_input.dead_neuron_mask,
            lambda: self.firing_rates(feature_acts),
        )

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        codes = output.feature_acts  # detach() would make them
        output.metrics["code_entropy_bits"] = lambda: minibatch_entropy(codes.detach())
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
