"""What SAELens transcoders of this package share, whatever their codes.

A transcoder reads one activation of a model and predicts another, usually an MLP's output from its
input. The skip connection is that of Paulo, Shabalin, Belrose, Transcoders Beat Sparse Autoencoders
for Interpretability (arXiv 2501.18823).

How a transcoder's classes are put together, from the first that Python asks to the last:
SkipConnection wraps encode and decode, then comes the coder (binary, or SAELens' TopK), then
TranscoderTraining, which compares with the target in place of the input, and at last TranscoderBase
with the shapes.
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
    """The fields every transcoder adds.

    Args:
        d_out: width of the output. None takes d_in.
        skip_connection: add a linear map of the input, W_skip [d_out, d_in], to the output.
    """

    d_out: int | None = None  # pyright: ignore
    skip_connection: bool = False
    # b_dec is as wide as the output and belongs to it.
    apply_b_dec_to_input: bool = False

    @override
    def __post_init__(self) -> None:
        if self.d_out is None:
            self.d_out = self.d_in  # pyright: ignore
        if self.d_out < 1:
            raise ValueError(f"d_out={self.d_out!r}: give the width of the output, at least 1.")
        if self.apply_b_dec_to_input:
            raise ValueError(
                "apply_b_dec_to_input=True: a transcoder's b_dec belongs to its output, which may "
                "have another width than its input. Leave it out or give False."
            )
        if self.reshape_activations != "none":
            raise ValueError(
                f"reshape_activations={self.reshape_activations!r}: a transcoder takes activations "
                "as they are, [..., d_in]. Leave it out."
            )
        super().__post_init__()

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """A config of a to_dict()."""
        # TranscoderConfig's own hands its metadata on as a dict, which training configs write to.
        return super(TranscoderConfig, cls).from_dict(config_dict)


class TranscoderBase(Transcoder):
    """A SAELens transcoder, fit to stand behind other classes."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        if use_error_term:
            raise ValueError(
                "use_error_term=True: a transcoder does not see the output it is to match. Give it "
                "to the model instead: model.add_sae(transcoder, use_error_term=True)."
            )
        super().__init__(cfg)
        self.run_time_activation_norm_fn_out = self._forget_statistics

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """A coder of a config's to_dict()."""
        # Transcoder's own would make a plain TranscoderConfig of it.
        return super(Transcoder, cls).from_dict(config_dict)

    def _forget_statistics(self, output: Tensor) -> Tensor:
        # Those of an input (layer_norm) say nothing about an output at another place of the model.
        for name in ("ln_mu", "ln_std", "x_norm_coeff"):
            vars(self).pop(name, None)
        return output


class SkipConnection(SAE[Any]):
    """Adds W_skip's part of the input to what a transcoder decodes.

    SAELens attaches a transcoder to a model as encode followed by decode, and decode is given the
    codes alone. So encode notes which input its codes are of, for as long as the codes live.
    """

    W_skip: nn.Parameter | None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._input_of_codes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        shape = (self.cfg.d_out, self.cfg.d_in)
        self.W_skip = (
            nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))
            if self.cfg.skip_connection
            else None
        )

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Codes [..., d_sae] of inputs [..., d_in]."""
        codes = super().encode(x)  # pyright: ignore[reportAbstractUsage]
        if self.W_skip is not None:
            self._input_of_codes[codes] = x
        return codes

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Output [..., d_out] of codes [..., d_sae] that encode returned, changed in place or not.

        Raises:
            ValueError: there is a skip connection, and the codes are no tensor that encode
                returned, so that their input is unknown.
        """
        if self.W_skip is None:
            return super().decode(feature_acts)  # pyright: ignore[reportAbstractUsage]
        x = cast(Tensor | None, self._input_of_codes.get(feature_acts))
        if x is None:
            raise ValueError(
                "decode: this transcoder has a skip connection, and encode did not return this "
                "tensor of codes, so their input is unknown. Use decode_with_input(codes, x), or "
                "change the codes in place."
            )
        return self.decode_with_input(feature_acts, x)

    def decode_with_input(self, feature_acts: Tensor, x: Tensor) -> Tensor:
        """Output [..., d_out] of any codes [..., d_sae] for an input [..., d_in]."""
        output = super().decode(feature_acts)  # pyright: ignore[reportAbstractUsage]
        return self.with_skip(output, x)

    def with_skip(self, output: Tensor, x: Tensor) -> Tensor:
        """The output [..., d_out] of the codes, plus W_skip's part of the input [..., d_in]."""
        return output if self.W_skip is None else output + x.to(self.dtype) @ self.W_skip.T

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Output [..., d_out] for inputs [..., d_in]."""
        return self.hook_sae_output(self.decode(self.encode(x)))


class TranscoderTraining(TrainingSAE[Any]):
    """What transcoders in training share: a step takes pairs and compares with their targets."""

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
            weight = torch.empty(
                self.cfg.d_in, self.cfg.d_sae, dtype=self.dtype, device=self.device
            )
            self.W_enc = nn.Parameter(nn.init.kaiming_uniform_(weight))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Losses of a batch of pairs.

        Args:
            step_input: sae_in is [tokens, d_in + d_out], inputs before targets.

        Returns:
            SAELens' output, with the targets as sae_in: what it logs as variance explained is that
            of the targets.

        Raises:
            ValueError: the rows are not d_in + d_out wide.
        """
        x, target = split_pairs(step_input.sae_in, self.cfg.d_in, self.cfg.d_out)
        codes, pre = self.encode_with_hidden_pre(x)
        output = self.decode_with_input(codes, x)
        reconstruction_loss = self.mse_loss_fn(output, target).sum(dim=-1).mean()
        further = cast(
            dict[str, Tensor],
            self.calculate_aux_loss(replace(step_input, sae_in=target), codes, pre, output),
        )
        losses = {"mse_loss": reconstruction_loss, **further}
        return TrainStepOutput(
            sae_in=target,
            sae_out=output,
            feature_acts=codes,
            hidden_pre=pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: PairFactors) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the factors of inputs and targets into the weights, for raw activations."""
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
        """Take the whitenings of inputs and targets into the weights, for raw activations.

        Args:
            mean: [d_in + d_out].
            whitening_matrix: [d_in + d_out, d_in + d_out], block-diagonal.
            unwhitening_matrix: its inverse.
        """
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
