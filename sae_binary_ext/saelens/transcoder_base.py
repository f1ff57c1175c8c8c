"""The classes that binary and TopK transcoders share.

A transcoder reads one activation of a model and predicts another, usually an MLP's output from its
input. The skip connection is that of Paulo, Shabalin, Belrose, Transcoders Beat Sparse Autoencoders
for Interpretability (arXiv 2501.18823).

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
from sae_lens.training.activation_scaler import ActivationWhitening
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from sae_binary_ext.saelens.pairs import PairFactors, split_pairs, whitening_part


@dataclass
class TranscoderFields(TranscoderConfig):
    """The fields that every transcoder adds.

    Args:
        d_out: width of the output. None takes d_in.
        skip_connection: if True, the output has a linear map of the input, W_skip [d_out, d_in],
            added.
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
        # TranscoderConfig's own leaves the metadata a dict. Training configs set its attributes.
        return super(TranscoderConfig, cls).from_dict(config_dict)


class TranscoderBase(Transcoder):
    """SAELens' transcoder, as the last base of others."""

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
        # Transcoder's own would make a plain TranscoderConfig.
        return super(Transcoder, cls).from_dict(config_dict)

    def _forget_statistics(self, output: Tensor) -> Tensor:
        # The output is another activation, so the input's statistics (layer_norm) do not apply.
        for name in ("ln_mu", "ln_std", "x_norm_coeff"):
            vars(self).pop(name, None)
        return output


class SkipConnection(SAE[Any]):
    """Adds W_skip @ input to the decoded output.

    In a model, SAELens calls encode and then decode, which gets the codes alone. So encode
    remembers the input of its codes for as long as the codes exist.
    """

    W_skip: nn.Parameter | None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._input_of_codes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.W_skip = None
        if self.cfg.skip_connection:
            zeros = torch.zeros(self.cfg.d_out, self.cfg.d_in, dtype=self.dtype, device=self.device)
            self.W_skip = nn.Parameter(zeros)

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Codes [..., d_sae] of inputs [..., d_in]."""
        codes = super().encode(x)  # pyright: ignore[reportAbstractUsage]
        if self.W_skip is not None:
            self._input_of_codes[codes] = x
        return codes

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Output [..., d_out] of codes [..., d_sae].

        With a skip connection, the codes must be the tensor that encode returned (ValueError if
        not), changed in place or not.
        """
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
            # As sparsify starts its transcoders.
            self.W_dec.data.zero_()
        else:
            # TrainingSAE has tied the encoder to the decoder, which is as wide as the output.
            weight = self.W_dec.new_empty(self.cfg.d_in, self.cfg.d_sae)
            self.W_enc = nn.Parameter(nn.init.kaiming_uniform_(weight))

    def split(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of pairs [tokens, d_in + d_out]; another width is a ValueError."""
        return split_pairs(pairs, self.cfg.d_in, self.cfg.d_out)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As SAELens', but for pairs. The output's sae_in, which SAELens logs, are the targets."""
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
        # In float64, as SAELens keeps these statistics.
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
