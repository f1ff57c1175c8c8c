"""The architectures "binary_transcoder" and "topk_transcoder".

A transcoder reads one activation of a model and predicts another, usually an MLP's output from its
input. Binary transcoders are those of Quirke, Shabalin, Belrose, Binary Sparse Coding for
Interpretability (arXiv 2509.25596). The skip connection is that of Paulo, Shabalin, Belrose,
Transcoders Beat Sparse Autoencoders for Interpretability (arXiv 2501.18823).

The bases of a transcoder, in Python's method resolution order: SkipConnection wraps encode and
decode; the coder (binary, or SAELens' TopK) makes codes; TranscoderTraining compares the output
with the target; TranscoderBase sets the shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from sae_lens import Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationWhitening
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from sae_binary_ext.checks import check_at_least, check_training_dtype
from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.encoded import Encoded, encode_batch
from sae_binary_ext.coding.initialization import fit_decoder, sample_rows
from sae_binary_ext.coding.kernels.processor import certainly_none
from sae_binary_ext.saelens import autoencoder
from sae_binary_ext.saelens.binary_entropy import EntropyLosses, EntropyLossFields
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE, TrainingFields
from sae_binary_ext.saelens.pairs import PairFactors, split_pairs, whitening_part


@dataclass
class TranscoderFields(TranscoderConfig):
    """The fields that every transcoder adds.

    Args:
        d_out: width of the output. None takes d_in.
        skip_connection: add a linear map of the input, W_skip [d_out, d_in], to the output.
    """

    d_out: int | None = None  # pyright: ignore
    skip_connection: bool = False
    apply_b_dec_to_input: bool = False

    @override
    def __post_init__(self) -> None:
        if self.d_out is None:
            self.d_out = self.d_in  # pyright: ignore
        if self.d_out < 1:
            raise ValueError(f"d_out={self.d_out!r}: give the width of the output, at least 1.")
        if self.apply_b_dec_to_input:
            raise ValueError(
                "apply_b_dec_to_input=True: a transcoder's b_dec is part of its output, which may "
                "differ in width from its input. Leave the field out or give False."
            )
        if self.reshape_activations != "none":
            raise ValueError(
                f"reshape_activations={self.reshape_activations!r}: a transcoder takes activations "
                "of shape [..., d_in]. Leave the field out."
            )
        super().__post_init__()

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        # TranscoderConfig.from_dict leaves metadata a dict, but training sets its attributes.
        return super(TranscoderConfig, cls).from_dict(config_dict)


class TranscoderBase(Transcoder):
    """SAELens' transcoder, adapted as the last base of the classes below."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        if use_error_term:
            raise ValueError(
                "use_error_term=True: a transcoder does not see the output that it predicts. Give "
                "the argument to the model: model.add_sae(transcoder, use_error_term=True)."
            )
        super().__init__(cfg)
        self.run_time_activation_norm_fn_out = self._forget_statistics

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        # Transcoder.from_dict would make a plain TranscoderConfig.
        return super(Transcoder, cls).from_dict(config_dict)

    def _forget_statistics(self, output: Tensor) -> Tensor:
        # The input's statistics (layer_norm) do not apply to the output.
        for name in ("ln_mu", "ln_std", "x_norm_coeff"):
            vars(self).pop(name, None)
        return output


class SkipConnection(SAE[Any]):
    """Adds W_skip @ input to the decoded output.

    In a model, SAELens calls encode and then decode, which gets only the codes. So encode remembers
    the input of its codes for as long as the codes exist.
    """

    W_skip: nn.Parameter | None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._input_of_codes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.W_skip = None
        if self.cfg.skip_connection:
            self.W_skip = nn.Parameter(self.W_dec.new_zeros(self.cfg.d_out, self.cfg.d_in))

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Codes [..., d_sae] of inputs [..., d_in]."""
        codes = super().encode(x)  # pyright: ignore[reportAbstractUsage]
        if self.W_skip is not None:
            self._input_of_codes[codes] = x
        return codes

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Output [..., d_out]; with a skip connection, only of a tensor that encode returned."""
        if self.W_skip is None:
            return super().decode(feature_acts)  # pyright: ignore[reportAbstractUsage]
        x = cast(Tensor | None, self._input_of_codes.get(feature_acts))
        if x is None:
            raise ValueError(
                "decode: this transcoder has a skip connection, but encode did not return this "
                "tensor of codes, so their input is unknown. Use decode_with_input(codes, x), or "
                "change the codes in place."
            )
        return self.decode_with_input(feature_acts, x)

    def decode_with_input(self, feature_acts: Tensor, x: Tensor) -> Tensor:
        """Output [..., d_out] of any codes [..., d_sae] for an input [..., d_in]."""
        output = super().decode(feature_acts)  # pyright: ignore[reportAbstractUsage]
        return self.with_skip(output, x)

    def with_skip(self, output: Tensor, x: Tensor) -> Tensor:
        """output [..., d_out], plus W_skip @ x [..., d_in] if there is a skip connection."""
        return output if self.W_skip is None else output + x.to(self.dtype) @ self.W_skip.T

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Output [..., d_out] for inputs [..., d_in]."""
        return self.hook_sae_output(self.decode(self.encode(x)))


class TranscoderTraining(TrainingSAE[Any]):
    """A transcoder in training: each step takes pairs and compares outputs with their targets."""

    W_skip: nn.Parameter | None
    decode_with_input: Callable[[Tensor, Tensor], Tensor]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.decoder_init_norm is None:
            # sparsify's transcoders also start with a decoder of zeros.
            self.W_dec.data.zero_()
        else:
            # TrainingSAE has copied the encoder from the decoder, which is as wide as the output.
            weight = self.W_dec.new_empty(self.cfg.d_in, self.cfg.d_sae)
            self.W_enc = nn.Parameter(nn.init.kaiming_uniform_(weight))

    def split(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of pairs [tokens, d_in + d_out]; ValueError for another width."""
        return split_pairs(batch, self.cfg.d_in, self.cfg.d_out)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As SAELens', but for pairs. The returned sae_in, which SAELens logs, is the targets."""
        x, target = self.split(step_input.sae_in)
        codes, pre = self.encode_with_hidden_pre(x)
        output = self.decode_with_input(codes, x)
        error = self.mse_loss_fn(output, target).sum(dim=-1).mean()
        step_input = replace(step_input, sae_in=target)
        further = self.calculate_aux_loss(step_input, codes, pre, output)
        losses = {"mse_loss": error, **cast(dict[str, Tensor], further)}
        loss = torch.stack(list(losses.values())).sum()
        return TrainStepOutput(target, output, codes, pre, loss, losses)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: PairFactors) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As SAELens', but with one factor for inputs and one for targets."""
        self.W_enc.data *= scaling_factor.input
        self.W_dec.data /= scaling_factor.target
        self.b_dec.data /= scaling_factor.target
        if self.W_skip is not None:
            self.W_skip.data *= scaling_factor.input / scaling_factor.target
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        """As SAELens', but for pairs: the matrices have one block for inputs, one for targets."""
        # Compute in float64, the dtype in which SAELens keeps these statistics.
        whole = ActivationWhitening(mean, whitening_matrix, unwhitening_matrix).to(self.device)
        source = whitening_part(whole, slice(None, self.cfg.d_in))
        target = whitening_part(whole, slice(self.cfg.d_in, None))
        encoder = source.matrix @ self.W_enc.data.to(source.matrix)
        bias = self.b_dec.data.to(encoder) @ target.inverse_matrix + target.mean
        if self.W_skip is not None:
            skip = source.matrix @ self.W_skip.data.T.to(encoder) @ target.inverse_matrix
            bias = bias - source.mean @ skip
            self.W_skip.data.copy_(skip.T)
        self.b_enc.data.sub_(source.mean @ encoder)  # pyright: ignore
        self.W_enc.data.copy_(encoder)
        self.W_dec.data.copy_(self.W_dec.data.to(encoder) @ target.inverse_matrix)
        self.b_dec.data.copy_(bias)
        self.cfg.normalize_activations = "none"


@dataclass
class BinaryTranscoderConfig(TranscoderFields, autoencoder.BinaryCodeConfig):
    """Config of a trained binary transcoder: fields of BinaryCodeConfig and TranscoderFields."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_transcoder"


class BinaryTranscoder(SkipConnection, autoencoder.BinaryCoder, TranscoderBase):
    """A trained binary transcoder, for inference.

    Parameters: W_enc [d_in, d_sae], b_enc [d_sae], log_threshold [d_sae], W_dec [d_sae, d_out],
    b_dec [d_out] and, with a skip connection, W_skip [d_out, d_in].
    """

    cfg: BinaryTranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class BinaryTranscoderTrainingSAEConfig(
    TranscoderFields, EntropyLossFields, autoencoder.BinaryTrainingSAEConfig
):
    """Config for training a binary transcoder.

    The fields are those of BinaryTrainingSAEConfig, EntropyLossFields and TranscoderFields.

    Args:
        aux_loss_coefficient: weight of the AuxK loss, which trains dead latents to reconstruct the
            residual. 0 turns it off.
    """

    aux_loss_coefficient: float = 0.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_transcoder"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, aux_loss_coefficient=self.aux_loss_coefficient)


class BinaryTranscoderTrainingSAE(  # pyright: ignore[reportIncompatibleMethodOverride]
    SkipConnection, EntropyLosses, autoencoder.BinaryTrainingSAE, TranscoderTraining, TranscoderBase
):
    """A binary transcoder in training.

    The first batch sets the encoder to pre-activations of unit variance and its biases to the
    starting rate. Each decoder row becomes the mean target of the tokens on which its latent fires
    (see coding.initialization). If a parameter was set before, the first batch sets nothing.
    """

    cfg: BinaryTranscoderTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    input_and_target = TranscoderTraining.split  # pyright: ignore[reportAssignmentType]

    @override
    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor | None]:
        if self.cfg.aux_loss_coefficient:
            # The AuxK loss reads all pre-activations.
            return encode_batch(encoder, noise=self.training)
        return super()._encode_batch(encoder)

    @override
    def _decode_batch(self, codes: Encoded, x: Tensor) -> Tensor:
        return self.with_skip(super()._decode_batch(codes, x), x)

    @override
    def code_losses(
        self, step_input: TrainStepInput, codes: Encoded, pre: Tensor | None, output: Tensor
    ) -> dict[str, Tensor]:
        target = step_input.sae_in
        losses = super().code_losses(step_input, codes, pre, output)
        losses |= self.entropy_losses(step_input.n_training_steps, codes, target)
        dead = step_input.dead_neuron_mask
        if not self.cfg.aux_loss_coefficient or pre is None or dead is None:
            return losses
        if not certainly_none(dead):
            margin = pre - self._rounded_log_threshold().exp()
            error = auxiliary_error(margin, dead, target - output, self.W_dec, self.rule)
            loss = self.cfg.aux_loss_coefficient * error / len(target)
            losses["auxiliary_reconstruction_loss"] = loss
        return losses

    @override
    @torch.no_grad()
    def fit_to_first_batch(self, batch: Tensor) -> None:
        x, target = self.split(sample_rows(batch).to(self.dtype))
        self.b_dec.copy_(target.mean(0))
        self._fit_encoder(self.run_time_activation_norm_fn_in(x))
        if self.cfg.decoder_init_norm is None:
            weight, bias = fit_decoder(self.encode(x), target)
            self.W_dec.copy_(weight)
            self.b_dec.copy_(bias)


@dataclass
class TopKTranscoderConfig(TranscoderFields, TopKSAEConfig):
    """Config of a trained TopK transcoder: SAELens' TopK fields and TranscoderFields."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_transcoder"


class TopKTranscoder(SkipConnection, autoencoder.SavedAtOnce, TopKSAE, TranscoderBase):
    """A trained TopK transcoder, for inference: SAELens' TopK coder from input to output."""

    cfg: TopKTranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class TopKTranscoderTrainingSAEConfig(TrainingFields, TranscoderFields, TopKTrainingSAEConfig):
    """Config for training a TopK transcoder: SAELens' TopK fields and those of the other bases.

    If decoder_init_norm is None, the decoder starts at zero, as in sparsify.
    """

    rescale_acts_by_decoder_norm: bool = False
    decoder_init_norm: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_training_dtype(self.dtype)
        if self.rescale_acts_by_decoder_norm and self.decoder_init_norm is None:
            raise ValueError(
                "rescale_acts_by_decoder_norm=True with decoder_init_norm=None: the decoder starts "
                "at zero, so there is no norm to rescale by. Give decoder_init_norm a number."
            )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_transcoder"


class TopKTranscoderTrainingSAE(  # pyright: ignore[reportIncompatibleMethodOverride]
    SkipConnection,
    autoencoder.SavedAtOnce,
    TopKTrainingSAE,
    FirstBatchTrainingSAE,
    TranscoderTraining,
    TranscoderBase,
):
    """A TopK transcoder in training: SAELens' TopK coder, compared with the target.

    As in sparsify, the first batch sets b_dec to the mean target, and the encoder's biases so that
    they centre the input, unless a parameter was set before.
    """

    cfg: TopKTranscoderTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @override
    @torch.no_grad()
    def fit_to_first_batch(self, batch: Tensor) -> None:
        x, target = self.split(batch.to(self.dtype))
        self.b_dec.copy_(target.mean(0))
        self.b_enc.copy_(-self.run_time_activation_norm_fn_in(x).mean(0) @ self.W_enc)
