"""What binary coders of SAELens share: the fields of a code, encoder, threshold and decoder.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import math
from dataclasses import dataclass

import torch
from sae_lens.saes.sae import (
    SAEConfig,
)
from simple_parsing import choice
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext.checks import check_layer_norm
from sae_binary_ext.coding.decode import decode
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.forms.inference import infer_indices, infer_packed
from sae_binary_ext.coding.initialization import INITIAL_THRESHOLD
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.saelens.saved_at_once import SavedAtOnce


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
