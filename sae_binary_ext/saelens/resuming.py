"""What SAELens' training checkpoints lack for a resumed run to end where an unbroken one does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_binary_ext.saelens.pairs import PairFactors
from sae_binary_ext.saelens.scaling import SCALE, WHITENING

RANDOM_STATE_FILENAME = "random_state.safetensors"
FOLDED_SCALE_FILENAME = "folded_scale.safetensors"


def save_random_state(checkpoint: Path) -> None:
    """Keep the state of torch's generators, which gumbel codes draw from, in a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, checkpoint / RANDOM_STATE_FILENAME)


def load_random_state(checkpoint: Path) -> None:
    """Go on drawing where a checkpoint was saved; nothing if it has no such state."""
    if not (checkpoint / RANDOM_STATE_FILENAME).is_file():
        return
    states = load_file(checkpoint / RANDOM_STATE_FILENAME)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@dataclass(frozen=True)
class FoldedScale:
    """What the end of training has folded into a coder's weights, so that it takes raw activations.

    Attributes:
        mode: SCALE or WHITENING, the training config's normalize_activations.
        tensors: float64. Of a scale "factor": [1], or [2] for a transcoder's input and target. Of a
            whitening what SAELens calls mean, matrix and inverse_matrix.
    """

    mode: str
    tensors: dict[str, Tensor]

    @classmethod
    def of_factor(cls, mode: str, factor: float | PairFactors) -> "FoldedScale | None":
        """None where a factor was folded that training did not estimate."""
        if mode != SCALE:
            return None
        return cls(mode, {"factor": torch.tensor(factor, dtype=torch.float64).reshape(-1)})

    @classmethod
    def of_whitening(
        cls, mode: str, mean: Tensor, matrix: Tensor, inverse_matrix: Tensor
    ) -> "FoldedScale | None":
        """None where a whitening was folded that training did not estimate."""
        if mode != WHITENING:
            return None
        tensors = {"mean": mean, "matrix": matrix, "inverse_matrix": inverse_matrix}
        return cls(mode, {name: value.double().contiguous() for name, value in tensors.items()})

    def give_to(self, scaler: ActivationScaler) -> None:
        """Let a trainer scale activations as the training did that saved the checkpoint."""
        if self.mode == WHITENING:
            scaler.whitening = ActivationWhitening(**self.tensors)
        else:
            scaler.scaling_factor = self._factor()  # pyright: ignore

    def take_from(self, coder: SAE[Any]) -> None:
        """Bring weights back to the scale they were trained in: fold the inverse."""
        cfg = coder.cfg
        rescales = getattr(cfg, "rescale_acts_by_decoder_norm", False)
        if self.mode == WHITENING:
            mean, matrix = self.tensors["mean"], self.tensors["matrix"]
            if rescales:
                cfg.rescale_acts_by_decoder_norm = False  # SAELens has folded the norms already
            coder.fold_activation_whitening(
                -(mean @ matrix), self.tensors["inverse_matrix"], matrix
            )
        else:
            factor = self._factor()
            inverse: Any = (
                PairFactors(1 / factor.input, 1 / factor.target)
                if isinstance(factor, PairFactors)
                else 1 / factor
            )
            coder.fold_activation_norm_scaling_factor(inverse)
        cfg.normalize_activations = self.mode
        if rescales:
            cfg.rescale_acts_by_decoder_norm = True

    def _factor(self) -> float | PairFactors:
        factors = self.tensors["factor"].tolist()
        return factors[0] if len(factors) == 1 else PairFactors(*factors)


def save_folded_scale(checkpoint: Path, coder: Any) -> None:
    """Keep in a final checkpoint what was folded into its weights; nothing in others."""
    if coder.folded is not None and coder.cfg.normalize_activations == "none":
        tensors = {name: value.cpu() for name, value in coder.folded.tensors.items()}
        save_file(tensors, checkpoint / FOLDED_SCALE_FILENAME)


def folded_scale(checkpoint: Path, cfg: Any) -> FoldedScale | None:
    """What a checkpoint's weights have folded in, where training with a config would scale anew.

    Args:
        checkpoint: a training checkpoint.
        cfg: of the coder that goes on from it.

    Raises:
        ValueError: something is folded in, and the checkpoint does not tell what.
    """
    mode, saved = cfg.normalize_activations, checkpoint / SAE_CFG_FILENAME
    if mode not in (SCALE, WHITENING) or not saved.is_file():
        return None
    if json.loads(saved.read_text()).get("normalize_activations") == mode:
        return None
    path = checkpoint / FOLDED_SCALE_FILENAME
    tensors = load_file(path) if path.is_file() else {}
    if set(tensors) != ({"factor"} if mode == SCALE else {"mean", "matrix", "inverse_matrix"}):
        raise ValueError(
            f"{checkpoint}: its weights take raw activations, and normalize_activations={mode!r} "
            f"would scale them once more. It does not hold what was folded in ({path.name}). Go on "
            "from a checkpoint of before the end of training, or set normalize_activations='none'."
        )
    return FoldedScale(mode, tensors)
