"""The architectures "binary_transcoder" and "topk_transcoder".

Binary transcoders are those of Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability
(arXiv 2509.25596). TranscoderTrainingRunner trains both on the same pairs of activations.
"""

from dataclasses import dataclass

import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checks import check_at_least, check_training_dtype
from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.encoded import Encoded, encode_batch
from sae_binary_ext.coding.initialization import fit_decoder, sample_rows
from sae_binary_ext.saelens.autoencoder import (
    BinaryCodeConfig,
    BinaryCoder,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
    SavedAtOnce,
)
from sae_binary_ext.saelens.binary_entropy import EntropyLossFields
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE, TrainingFields
from sae_binary_ext.saelens.transcoder_base import (
    SkipConnection,
    TranscoderBase,
    TranscoderFields,
    TranscoderTraining,
)


@dataclass
class BinaryTranscoderConfig(TranscoderFields, BinaryCodeConfig):
    """Config of a trained binary transcoder: fields of BinaryCodeConfig and TranscoderFields."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_transcoder"


class BinaryTranscoderCoder(BinaryCoder):
    """A binary encoder that subtracts nothing from its input."""

    @override
    def _origin(self) -> Tensor:
        return self.b_dec.new_zeros(self.cfg.d_in)


class BinaryTranscoder(SkipConnection, BinaryTranscoderCoder, TranscoderBase):
    """A trained binary transcoder, for inference.

    Parameters: W_enc [d_in, d_sae], b_enc [d_sae], log_threshold [d_sae], W_dec [d_sae, d_out],
    b_dec [d_out] and, with a skip connection, W_skip [d_out, d_in].
    """

    cfg: BinaryTranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class BinaryTranscoderTrainingSAEConfig(
    TranscoderFields, EntropyLossFields, BinaryTrainingSAEConfig
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
        self.check_entropy_fields()
        check_at_least(0, aux_loss_coefficient=self.aux_loss_coefficient)


class BinaryTranscoderTrainingSAE(  # pyright: ignore[reportIncompatibleMethodOverride]
    SkipConnection, BinaryTranscoderCoder, BinaryTrainingSAE, TranscoderTraining, TranscoderBase
):
    """A binary transcoder in training.

    Unless a parameter was set before, the first batch sets the encoder to pre-activations of unit
    variance, its biases to the starting rate, and each decoder row to the mean target of the tokens
    on which its latent fires (see coding.initialization).
    """

    cfg: BinaryTranscoderTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @override
    def _input_and_target(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(batch)

    @override
    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor | None]:
        if self.cfg.aux_loss_coefficient:
            # AuxK reads all pre-activations.
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
        losses |= self.cfg.entropy_losses(step_input.n_training_steps, codes, target)
        dead = step_input.dead_neuron_mask
        if pre is not None and self.cfg.aux_loss_coefficient and dead is not None and dead.any():
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


class TopKTranscoder(SkipConnection, SavedAtOnce, TopKSAE, TranscoderBase):
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
    SavedAtOnce,
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
