"""The architecture "binary": an autoencoder whose latents are exactly 0 or 1.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes import sae as host
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from simple_parsing import choice
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext import checks
from sae_binary_ext.coding.decode import decode
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.entropy import bernoulli_entropy, excess_rate
from sae_binary_ext.coding.forms.encoded import DenseCodes, Encoded, encode_codes
from sae_binary_ext.coding.forms.picked import infer_indices, infer_packed
from sae_binary_ext.coding.initialization import INITIAL_THRESHOLD, fit_start
from sae_binary_ext.coding.kernels.sparse import code_matrix
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE, TrainingFields, fired_rates
from sae_binary_ext.saelens.private import HOST
from sae_binary_ext.saving import replacing
from sae_binary_ext.training.derived import DerivesSettings
from sae_binary_ext.training.fields import LearningFields
from sae_binary_ext.training.finite import check_parameters


@dataclass
class BinaryCodeConfig(host.SAEConfig):
    """The fields that every binary coder adds to SAELens' own fields.

    Args:
        selection: which latents may fire. topk: the latents with the k largest margins; groupmax:
            the largest of each of k contiguous groups; threshold: any latent above its threshold;
            gumbel: exactly one of each of k groups, sampled in training.
        k: most latents that fire on a token (topk), or number of groups (groupmax, gumbel).
            threshold does not use it.
        surrogate: gradient of the 0/1 step: sigmoid, rectangle, reste or identity.
        surrogate_temperature: width of the surrogate, in units of the pre-activation.
            Pre-activations have standard deviation 1 when training starts.
    """

    selection: str = choice(*SELECTIONS, default="topk")
    k: int = 32
    surrogate: str = choice(*SURROGATES, default="sigmoid")
    surrogate_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.code_rule().check_latents(self.d_sae)
        checks.check_layer_norm(self.normalize_activations, self.d_in)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary"

    def code_rule(self) -> CodeRule:
        """The fields of this config as a CodeRule."""
        return CodeRule(self.selection, self.k, self.surrogate, self.surrogate_temperature)


class SavedAtOnce(host.SAE[Any]):
    """A coder that is saved all or nothing, even by a killed process (see saving.replacing)."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        HOST.check()
        super().__init__(cfg, use_error_term)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens', but all or nothing; ValueError if a parameter is not finite."""
        check_parameters(self.named_parameters())
        with replacing(Path(path)) as new:
            weights, config = super().save_model(new)
        return Path(path) / weights.name, Path(path) / config.name


class BinaryCoder(SavedAtOnce):
    """The encoder, threshold and decoder that the inference and training classes share.

    Parameters: SAELens' W_enc [d_in, d_sae], W_dec [d_sae, d_in] and b_dec [d_in], and b_enc
    [d_sae] and log_threshold [d_sae]. A latent fires if the selection allows it and its
    pre-activation exceeds exp(log_threshold).
    """

    b_enc: nn.Parameter
    log_threshold: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.rule: CodeRule = self.cfg.code_rule()
        zeros = torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device)
        self.b_enc = nn.Parameter(zeros)
        # Use at least float32: in bfloat16, rounding would undo an optimizer's step.
        wide = torch.promote_types(self.dtype, torch.float32)
        self.log_threshold = nn.Parameter(
            torch.full_like(zeros, math.log(INITIAL_THRESHOLD), dtype=wide)
        )

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Codes, never sampled: [..., d_sae] in the coder's dtype, exactly 0.0 or 1.0.

        x is [..., d_in] after reshape_activations. Another width of x is an error, here and below.
        """
        return self.codes_and_pre_activations(x, noise=False)[0]

    def encode_packed(self, x: Tensor) -> Tensor:
        """Codes for coding.unpack, uint8 [..., d_sae / 8 rounded up]; no gradient, no hooks."""
        return infer_packed(self._encoder(self._checked_input(x)))

    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in index form, 0.0 or 1.0, and their latents, both [..., m]; no gradient, no hooks.

        m is k, or for threshold the largest number of latents that fire on a token. No row has a
        latent twice. If two pre-activations differ only by rounding, encode may pick the other
        latent.
        """
        return infer_indices(self._encoder(self._checked_input(x)))

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of codes [..., d_sae]."""
        return self._finish_decoding(decode(feature_acts, self.W_dec, self.b_dec))

    def decode_firings(self, codes: Tensor) -> Tensor:
        """As decode, of codes [tokens, d_sae] without gradient; faster if few latents fire."""
        firings = code_matrix(codes != 0)
        return self._finish_decoding(firings.times(self.W_dec.detach()) + self.b_dec.detach())

    @override
    def fold_W_dec_norm(self) -> None:
        """Raise NotImplementedError, as SAELens' coders without a fold do. sae-bench catches it."""
        raise NotImplementedError(
            "fold_W_dec_norm: the magnitude of a binary latent lives in its decoder row, and its "
            "code cannot be rescaled to make up for a row of unit norm. Load with "
            "fold_W_dec_norm=False; the row norms are sae.W_dec.norm(dim=-1)."
        )

    def codes_and_pre_activations(self, x: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """Codes and pre-activations, both [..., d_sae]; if noise is True, gumbel samples codes."""
        centred = self._checked_input(x)
        pre = self.hook_sae_acts_pre(pre_activations(centred, self.W_enc, self.b_enc))
        return self.hook_sae_acts_post(self._codes(centred, pre, noise)), pre

    def _codes(self, centred: Tensor, pre: Tensor, noise: bool) -> Tensor:
        """Codes [..., d_sae] of the encoder's input and its pre-activations."""
        return binarise(pre, self._rounded_log_threshold(), self.rule, noise)

    def _finish_decoding(self, reconstruction: Tensor) -> Tensor:
        reconstruction = self.hook_sae_recons(reconstruction)
        reconstruction = self.run_time_activation_norm_fn_out(reconstruction)
        return self.reshape_fn_out(reconstruction, self.d_head)

    def _checked_input(self, x: Tensor) -> Tensor:
        check_width(x.flatten(-2) if self.hook_z_reshaping_mode else x, self.cfg.d_in)
        return self.process_sae_in(x)

    def _encoder(self, centred: Tensor) -> Encoder:
        threshold = self._rounded_log_threshold()
        return Encoder(centred, self.W_enc, self.b_enc, threshold, self._origin(), self.rule)

    def _origin(self) -> Tensor:
        """The vector subtracted from the input, [d_in]."""
        applied = self.cfg.apply_b_dec_to_input
        return self.b_dec if applied else self.b_dec.new_zeros(self.cfg.d_in)

    def _rounded_log_threshold(self) -> Tensor:
        # Round as SAELens' loaders do, so that training and the saved coder give the same codes.
        dtype = self.b_enc.dtype
        return self.log_threshold.to(dtype).to(torch.promote_types(dtype, torch.float32))


@dataclass
class BinarySAEConfig(BinaryCodeConfig):
    """Config of a trained binary autoencoder; the fields are those of BinaryCodeConfig."""


class BinarySAE(BinaryCoder):
    """A trained binary autoencoder, for inference."""

    cfg: BinarySAEConfig


@dataclass
class BinaryTrainingSAEConfig(
    TrainingFields, LearningFields, BinaryCodeConfig, host.TrainingSAEConfig
):
    """Config for training a binary autoencoder; its base classes have further fields.

    Each coefficient is in units of FVU, the fraction of variance unexplained. 0 turns a loss off.

    Args:
        pre_act_loss_coefficient: weight of a loss that raises the encoder biases of dead latents
            until they fire. A latent is dead if it has not fired for dead_window_tokens, or for
            dead_feature_window of SAELens' trainer, in steps. The default of binary_entropy is 0.
            SAELens' jumprelu has a similar loss.
        dense_coefficient: cost of each unit of a latent's firing rate above dense_rate. At 4e-3, no
            latent of 4608 fired on more than a tenth of the tokens of text like the training text.
        initial_firing_rate: firing rate, between 0 and 1, that the first batch sets the encoder
            biases to. None takes 0.05, or k / d_sae if that is more, and 0.02 for threshold.
        decoder_init_norm: norm of the decoder rows when training starts. None scales them to the
            least squared error on the first batch.
        surrogate_latents: which latents learn from a token. "selected": those that the selection
            picks. topk also takes "near", the 2k latents nearest to firing, and "all", every
            latent; these compete for the k places (see coding.competing). None takes near for topk
            and selected for other selections.
        lr_decay_share: share of the run's steps, at its end, in which the learning rate falls to 0,
            if SAELens' own schedule is constant. 0 keeps it constant. None derives it
            (training/derived.py).
    """

    pre_act_loss_coefficient: float = 1e-4
    dense_coefficient: float = 0.0
    initial_firing_rate: float | None = None
    decoder_init_norm: float | None = None
    surrogate_latents: str | None = None
    lr_decay_share: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_firing_rate is not None:
            checks.check_rate(initial_firing_rate=self.initial_firing_rate)
        checks.check_training_dtype(self.dtype)
        checks.check_at_least(0, pre_act_loss_coefficient=self.pre_act_loss_coefficient)
        checks.check_at_least(0, dense_coefficient=self.dense_coefficient)
        checks.check_rate(dense_rate=self.dense_rate)
        checks.check_count(
            refit_tokens=self.refit_tokens, dead_window_tokens=self.dead_window_tokens
        )
        checks.check_share(lr_decay_share=self.lr_decay_share)
        if self.encoder_trains_b_dec and not self.apply_b_dec_to_input:
            raise ValueError(
                "encoder_trains_b_dec=True with apply_b_dec_to_input=False: the encoder does not "
                "see b_dec. Leave encoder_trains_b_dec out."
            )

    @override
    def code_rule(self) -> CodeRule:
        rule = super().code_rule()
        learners = self.surrogate_latents or rule.kind.default_learners
        return replace(rule, surrogate_latents=learners)


class BinaryTrainingSAE(DerivesSettings, BinaryCoder, FirstBatchTrainingSAE):
    """A binary autoencoder in training.

    The first batch sets b_dec to its mean, the encoder to pre-activations of unit variance and the
    biases to the starting rate (see coding.initialization), unless a parameter was set before.
    """

    cfg: BinaryTrainingSAEConfig

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, sampled for gumbel, and pre-activations, both [..., d_sae] with gradient."""
        return self.codes_and_pre_activations(x, noise=self.training)

    @override
    def step_losses(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As SAELens' step, but uses the codes' cheapest form if _may_shorten allows it.

        feature_acts and hidden_pre then have no gradient, and are sparse COO if few latents fire.
        hidden_pre has the pre-activations of the latents that may fire.
        """
        if not self._may_shorten(step_input.sae_in):
            return super().step_losses(step_input)
        x, target = self.input_and_target(step_input.sae_in)
        # centred gets no gradient: b_dec learns through the encoder's origin (see coding.encode).
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
        """The losses that are on, besides the reconstruction loss, by name and in its units.

        step_input.sae_in is the target and output the reconstruction, both [tokens, d_out]. pre is
        [tokens, d_sae], or None if the step did not make all pre-activations.
        """
        target, dead = step_input.sae_in, step_input.dead_neuron_mask
        losses: dict[str, Tensor] = {}
        if self.cfg.pre_act_loss_coefficient and dead is not None:
            # The loss acts on biases only: a gradient of the encoder's weights would cost a large
            # product, and the other parts of pre-activations nearly cancel over a batch.
            scale = self.cfg.pre_act_loss_coefficient * total_variance(target)
            losses["pre_act_loss"] = -scale * (self.b_enc * dead).sum()
        if self.cfg.dense_coefficient:
            scale = self.cfg.dense_coefficient * total_variance(target)
            losses["dense_loss"] = scale * excess_rate(codes.firing_rates(), self.cfg.dense_rate)
        return losses

    @override
    def _origin(self) -> Tensor:
        return super()._origin() if self.cfg.encoder_trains_b_dec else super()._origin().detach()

    @override
    def _checked_input(self, x: Tensor) -> Tensor:
        centred = super()._checked_input(x)
        subtracts = self.cfg.apply_b_dec_to_input and torch.is_grad_enabled()
        if self.cfg.encoder_trains_b_dec or not subtracts:
            return centred
        # Add zeros whose gradient cancels the gradient of b_dec in centred.
        origin = super()._origin()
        return centred + (origin - origin.detach())

    def input_and_target(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The coder's input and its target, of a batch of training [tokens, width of its rows]."""
        return batch, batch

    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor | None]:
        return encode_codes(encoder, noise=self.training), None

    def _decode_batch(self, codes: Encoded, x: Tensor) -> Tensor:
        return self._finish_decoding(codes.decode(self.W_dec, self.b_dec))

    def _may_shorten(self, batch: Tensor) -> bool:
        """Whether a step needs gradients and no hook, compiler or subclass reads its arrays."""
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
    def get_coefficients(self) -> dict[str, float | host.TrainCoefficientConfig]:
        return {}

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
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
        # Module.to() casts every parameter. Keep log_threshold in float32, unrounded.
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
        decoder = self._fit_encoder(normalised)
        if self.cfg.decoder_init_norm is None:
            self.W_dec.copy_(decoder)

    def _fit_encoder(self, normalised: Tensor) -> Tensor:
        """Set W_enc and b_enc for inputs [tokens, d_in]; returns W_dec for an autoencoder."""
        centred, rate = normalised - self._origin(), self.setting("initial_firing_rate")
        start = fit_start(centred, self.W_enc, self.log_threshold, self.rule, rate)
        self.W_enc.copy_(start.encoder_weight)
        self.b_enc.copy_(start.encoder_bias)
        return start.decoder_weight
