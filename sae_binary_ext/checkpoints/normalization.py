"""The scale of the activations that a training checkpoint of SAELens was trained on.

SAELens keeps the scale in files beside the weights, and folds it into the weights when training
ends. An earlier checkpoint computes the right codes only after its scale is folded in.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import has_values, read_json, read_tensors
from sae_binary_ext.checkpoints.portable import PortableCoder

SCALER = "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
STORE_STATE = "activations_store_state.safetensors"  # SAELens before version 6 writes it
SCALING_FILES = (SCALER, WHITENING, STORE_STATE)
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"


@dataclass(frozen=True)
class Whitening:
    """An affine map z = (x - mean) @ matrix, undone by x = z @ inverse + mean.

    Attributes:
        mean: [d], float64 as SAELens estimates it.
        matrix, inverse: [d, d], float64.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def part(self, columns: slice) -> "Whitening":
        """One diagonal block."""
        return Whitening(
            self.mean[columns], self.matrix[columns, columns], self.inverse[columns, columns]
        )


@dataclass(frozen=True)
class Scaling:
    """The factors or the whitening applied to the inputs and targets of training.

    Attributes:
        file: the name of the file that holds it.
        input, target: factors, equal for an autoencoder. 1 if there is a whitening.
        whitening: of the inputs, or of a transcoder's pairs. None if there are factors.
    """

    file: str
    input: float = 1.0
    target: float = 1.0
    whitening: Whitening | None = None

    def in_words(self) -> str:
        """The scaling as `inspect` describes it."""
        if self.whitening is not None:
            done = "whitened"
        elif self.input == self.target:
            done = f"scaled by {self.input:.4g}"
        else:
            done = f"inputs scaled by {self.input:.4g}, targets by {self.target:.4g}"
        return f"{done} ({self.file}), folded on load"


def scaling_of(folder: Path, mode: object, d_in: int, d_out: int | None = None) -> Scaling | None:
    """Read the scaling that a checkpoint's weights do not contain yet.

    Args:
        folder: the checkpoint's.
        mode: normalize_activations of its config.
        d_in: width of its inputs.
        d_out: width of a transcoder's targets. None for an autoencoder.

    Returns:
        The scaling. None if the config asks for none, or no file holds it.

    Raises:
        CheckpointError: a file is damaged, or holds no usable scale.
    """
    if mode == WHITENED:
        return _whitening(folder, d_in + (d_out or 0))
    if mode != SCALED:
        return None
    path = folder / SCALER
    if path.is_file():
        value = read_json(path).get("scaling_factor")
    else:
        path = folder / STORE_STATE
        value = _factor_of_store(path)
    return None if value is None else _factors(path, value, d_out is not None)


def _factors(path: Path, value: Any, pair: bool) -> Scaling:
    stated: list[Any] = list(value) if pair and isinstance(value, list) else [value]
    largest = sys.float_info.max
    usable = all(type(one) in (int, float) and 0 < one <= largest for one in stated)
    if not usable or not 1 <= len(stated) <= 2:
        expected = "two positive numbers, of inputs and targets" if pair else "a positive number"
        raise CheckpointError(f"{path}: scaling_factor={value!r} where {expected} is expected.")
    return Scaling(path.name, float(stated[0]), float(stated[-1]))


def _factor_of_store(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if "estimated_norm_scaling_factor" not in file.keys():  # noqa: SIM118
                return None
            return file.get_tensor("estimated_norm_scaling_factor").item()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error


def _whitening(folder: Path, width: int) -> Scaling | None:
    path = folder / WHITENING
    if not path.is_file():
        return None
    square = (width, width)
    stored = read_tensors(path, {"mean": (width,), "matrix": square, "inverse_matrix": square})
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    if has_values(path) and not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(f"{path}: holds values that are not finite.")
    whitening = Whitening(tensors["mean"], tensors["matrix"], tensors["inverse_matrix"])
    return Scaling(WHITENING, whitening=whitening)


def folded(coder: PortableCoder, scaling: Scaling | None) -> PortableCoder:
    """The coder that gives for raw activations the codes that this one gives for scaled ones.

    Args:
        coder: as its file stores it.
        scaling: from scaling_of. None returns the coder unchanged.
    """
    if scaling is None:
        return coder
    if scaling.whitening is not None:
        # Some coders rank by the norms of decoder rows, which unwhitening changes.
        coder = with_decoder_norms_folded(coder)
        changed = _whitened(coder, scaling.whitening)
    else:
        changed = {
            "encoder_weight": coder.tensors["encoder_weight"] * scaling.input,
            "decoder_weight": coder.tensors["decoder_weight"] / scaling.target,
            "decoder_bias": coder.tensors["decoder_bias"] / scaling.target,
        }
        if coder.shape.skip:
            ratio = scaling.input / scaling.target
            changed["skip_weight"] = coder.tensors["skip_weight"] * ratio
    return replace(
        coder,
        shape=replace(coder.shape, normalize_activations="none"),
        tensors=coder.tensors | changed,
    )


def _whitened(coder: PortableCoder, whitening: Whitening) -> dict[str, Tensor]:
    """The tensors that a whitening changes, computed in float64."""
    wide = {name: tensor.double() for name, tensor in coder.tensors.items()}
    d_in = coder.shape.d_in
    source = target = whitening
    if coder.shape.transcoder:
        source, target = whitening.part(slice(None, d_in)), whitening.part(slice(d_in, None))
    encoder = (source.matrix @ wide["encoder_weight"].T).T
    changed = {
        "encoder_weight": encoder,
        "decoder_weight": wide["decoder_weight"] @ target.inverse,
        "decoder_bias": wide["decoder_bias"] @ target.inverse + target.mean,
    }
    if not coder.shape.subtracts_decoder_bias:
        changed["encoder_bias"] = wide["encoder_bias"] - encoder @ source.mean
    if coder.shape.skip:
        skip = source.matrix @ wide["skip_weight"].T @ target.inverse
        changed["skip_weight"] = skip.T
        changed["decoder_bias"] = changed["decoder_bias"] - source.mean @ skip
    return {name: tensor.to(coder.tensors[name].dtype) for name, tensor in changed.items()}


def with_decoder_norms_folded(coder: PortableCoder) -> PortableCoder:
    """If a coder ranks by pre-activation times decoder row norm, make all rows of norm 1.

    Codes and outputs stay the same. SAELens' save_inference_model folds the norms in this way.
    """
    if not coder.shape.rescales_by_decoder_norm:
        return coder
    norms = coder.tensors["decoder_weight"].norm(dim=-1, keepdim=True).clamp(min=1e-8)
    changed = {
        "encoder_weight": coder.tensors["encoder_weight"] * norms,
        "encoder_bias": coder.tensors["encoder_bias"] * norms[:, 0],
        "decoder_weight": coder.tensors["decoder_weight"] / norms,
    }
    return replace(
        coder,
        shape=replace(coder.shape, rescales_by_decoder_norm=False),
        tensors=coder.tensors | changed,
    )
