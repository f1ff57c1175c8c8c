"""Random states and folded activation scales, which SAELens' checkpoints lack."""

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_binary_ext.saelens.pairs import SCALE, WHITENING, PairFactors

logger = logging.getLogger(__name__)

RANDOM_STATE_FILENAME = "random_state.safetensors"
FOLDED_SCALE_FILENAME = "folded_scale.safetensors"


def save_random_state(checkpoint: Path) -> None:
    """Save the state of torch's generators, which gumbel codes draw from, to a checkpoint."""
    save_file(_random_states(), checkpoint / RANDOM_STATE_FILENAME)


def load_random_state(checkpoint: Path) -> None:
    """Set torch's generators to the state in a checkpoint, if it has one."""
    if (checkpoint / RANDOM_STATE_FILENAME).is_file():
        _set_random_states(load_file(checkpoint / RANDOM_STATE_FILENAME))


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RandomStream:
    """Random numbers of one coder, or of anything else with a name, that nothing else draws from.

    Args:
        seed, name: equal seeds and names give equal numbers.
    """

    def __init__(self, seed: int, name: str) -> None:
        before = _random_states()
        torch.manual_seed(seed + crc32(name.encode()))
        self._states = _random_states()
        _set_random_states(before)

    @staticmethod
    def new_seed() -> int:
        """A seed from torch's generator, so that torch.manual_seed decides about all streams."""
        return int(torch.randint(2**31, ()))

    @contextmanager
    def drawn_from(self) -> Generator[None]:
        """Until the block ends, torch's generators draw from this stream."""
        before = _random_states()
        _set_random_states(self._states)
        try:
            yield
        finally:
            self._states = _random_states()
            _set_random_states(before)


@dataclass(frozen=True)
class ActivationScale:
    """The factor or the whitening that a training run applies to activations.

    The end of training folds this scale into the weights, which then take raw activations.

    Attributes:
        mode: SCALE or WHITENING, the training config's normalize_activations.
        tensors: float64. For SCALE "factor": [1], or [2] for a transcoder's input and target. For
            WHITENING "mean" [d], "matrix" and "inverse_matrix" [d, d], as SAELens names them.
    """

    mode: str
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, mode: str, scaler: ActivationScaler) -> "ActivationScale | None":
        """The scaler's scale of this mode; None if it has none, or if the mode has no scale."""
        if mode == SCALE and scaler.scaling_factor is not None:
            factor = torch.tensor(scaler.scaling_factor, dtype=torch.float64)
            return cls(mode, {"factor": factor.reshape(-1)})
        if mode == WHITENING and scaler.whitening is not None:
            whitening: dict[str, Tensor] = vars(scaler.whitening)
            return cls(mode, {name: t.double().contiguous() for name, t in whitening.items()})
        return None

    def give_to(self, scaler: ActivationScaler) -> None:
        """Set a trainer's scaler to this scale."""
        if self.mode == WHITENING:
            scaler.whitening = ActivationWhitening(**self.tensors)
        else:
            scaler.scaling_factor = _factor(self.tensors["factor"])  # pyright: ignore

    def take_from(self, coder: SAE[Any]) -> None:
        """Undo the fold: bring a coder's weights back to the scale they were trained in."""
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
            inverse: Any = _factor(1 / self.tensors["factor"])
            coder.fold_activation_norm_scaling_factor(inverse)
        cfg.normalize_activations = self.mode
        if rescales:
            cfg.rescale_acts_by_decoder_norm = True


def _factor(factor: Tensor) -> float | PairFactors:
    factors = factor.tolist()
    return factors[0] if len(factors) == 1 else PairFactors(*factors)


def scale_beside(folder: Path, mode: str) -> ActivationScale | None:
    """The scale that SAELens saves beside the weights of a run that has not ended.

    The result is None if the mode (the config's normalize_activations) needs no scale. A missing
    scale is logged as a warning.
    """
    if mode not in (SCALE, WHITENING):
        return None
    scaler, path = ActivationScaler(), folder / ACTIVATION_SCALER_CFG_FILENAME
    if path.is_file():
        scaler.load(path)
    scale = ActivationScale.of(mode, scaler)
    if scale is None:
        logger.warning(
            f"{folder}: normalize_activations={mode!r}, but the folder does not hold the scale "
            f"that its weights were trained in ({path.name}). Training will estimate a new one, "
            "which only suits untrained weights. To keep the scale, copy that file here."
        )
    return scale


def save_folded_scale(checkpoint: Path, coder: Any) -> None:
    """Save the scale that is folded into a coder's weights, if there is one, to its checkpoint."""
    if coder.folded is not None and coder.cfg.normalize_activations == "none":
        tensors = {name: value.cpu() for name, value in coder.folded.tensors.items()}
        save_file(tensors, checkpoint / FOLDED_SCALE_FILENAME)


def folded_scale(checkpoint: Path, cfg: Any) -> ActivationScale | None:
    """The scale folded into a checkpoint's weights, if a coder of this cfg would scale again.

    Raises ValueError if a scale was folded into the weights and the checkpoint does not hold it.
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
            f"{checkpoint}: its weights take raw activations, but normalize_activations={mode!r} "
            f"would scale these again. The folded scale is missing ({path.name}). Resume from a "
            "checkpoint from before the end of training, or set normalize_activations='none'."
        )
    return ActivationScale(mode, tensors)
