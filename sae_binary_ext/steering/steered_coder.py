"""What steering needs of a coder of either host: codes, decoder rows, and its output's scale.

The output of each coder here is a sum of decoder rows, weighted by the codes and scaled, plus a
part that does not depend on codes. So if codes change, the output changes by rows alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sae_lens import SAE, Transcoder
from torch import Tensor

from sae_binary_ext.measure.in_model import reads_sequences
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import heads_side_by_side


def steered_coder(coder: Any) -> "SteeredCoder":
    """A coder of either host as steering takes it; ValueError if steering cannot use it."""
    if isinstance(coder, SAE):
        if reads_sequences(coder):
            raise ValueError(
                f"{type(coder).__name__} reads whole sequences, and a step of generation has one "
                "token. Steer with a coder that reads single tokens."
            )
        return OfSaelens(coder)
    if hasattr(coder, "num_latents") and getattr(coder, "W_dec", None) is not None:
        return OfSparsify(coder)
    raise ValueError(
        f"coder={type(coder).__name__}: is no coder with a decoder, of SAELens or sparsify. Load "
        "one with sae_binary_ext.checkpoints.load_coder."
    )


class SteeredCoder(ABC):
    """A coder of either host.

    Attributes:
        coder: the host's coder. It is never changed.
        latents, d_in, d_out: number of latents, and the widths of input and output.
        is_binary: whether each code is 0 or 1.
        is_transcoder: whether the output belongs to another hook than the input.
    """

    latents: int
    d_in: int
    d_out: int
    is_binary: bool
    is_transcoder: bool

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    @abstractmethod
    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [tokens, latents] of inputs [tokens, d_in], and the scale of the output.

        The scale, [tokens, 1], multiplies decoder rows; None if it is 1. Both are in the coder's
        dtype.
        """

    def rows(self, latents: Sequence[int]) -> Tensor:
        """What a code of 1 adds to the output before scaling: [given latents, d_out]."""
        return self.coder.W_dec.detach()[list(latents)]


class OfSaelens(SteeredCoder):
    """A coder of SAELens."""

    def __init__(self, coder: SAE[Any]) -> None:
        super().__init__(coder)
        cfg: Any = coder.cfg
        self.latents, self.d_in = cfg.d_sae, cfg.d_in
        self.is_transcoder = isinstance(coder, Transcoder)
        self.d_out = cfg.d_out if self.is_transcoder else cfg.d_in
        self.is_binary = isinstance(coder, BinaryCoder)

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        with heads_side_by_side(self.coder):
            codes = self.coder.encode(inputs.to(self.coder.device, self.coder.dtype))
        scale = _scale_of_last_input(self.coder)
        # SAELens scales no output of a transcoder, because the scale is that of its input.
        return codes.to_dense(), None if self.is_transcoder else scale

    def rows(self, latents: Sequence[int]) -> Tensor:
        rows = super().rows(latents)
        if getattr(self.coder.cfg, "rescale_acts_by_decoder_norm", False):
            return rows / rows.norm(dim=-1, keepdim=True)
        return rows


class OfSparsify(SteeredCoder):
    """A coder of sparsify."""

    def __init__(self, coder: Any) -> None:
        super().__init__(coder)
        self.latents, self.d_in = coder.num_latents, coder.d_in
        self.d_out = coder.W_dec.shape[1]
        self.is_transcoder = coder.cfg.transcode
        self.is_binary = hasattr(coder, "rule")

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        own = inputs.to(self.coder.device, self.coder.dtype)
        acts, latents, _ = self.coder.encode(own)
        codes = acts.new_zeros(len(own), self.latents)
        return codes.scatter(-1, latents, acts), None


def _scale_of_last_input(coder: Any) -> Tensor | None:
    """What SAELens' coder multiplies its output by, [tokens, 1], after it encoded these tokens.

    The mean that layer_norm adds does not depend on codes.
    """
    kept = vars(coder)
    kept.pop("ln_mu", None)
    deviation, factor = kept.pop("ln_std", None), kept.pop("x_norm_coeff", None)
    return deviation if factor is None else 1 / factor
