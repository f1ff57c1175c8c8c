"""The scale of the activations that a training checkpoint of SAELens was trained on.

SAELens keeps the scale in files beside the weights, and folds it into the weights when training
ends. An earlier checkpoint computes the right codes only after its scale is folded in.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import has_values, read_json, read_tensors
from sae_binary_ext.checkpoints.portable import PortableCoder

SCALER = "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
STORE_STATE = "activations_store_state.safetensors"  # SAELens before version 6 writes this file
SCALING_FILES = (SCALER, WHITENING, STORE_STATE)
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"


class Whitening(NamedTuple):
    """An affine map z = (x - mean) @ matrix, undone by x = z @ inverse + mean.

    mean [d]; matrix, inverse: [d, d]. All three are float64, as SAELens estimates them.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def part(self, columns: slice) -> "Whitening":
        """The whitening of `columns`: one diagonal block of the matrices."""
        square = (columns, columns)
        return Whitening(self.mean[columns], self.matrix[square], self.inverse[square])


@dataclass(frozen=True)
class Scaling:
    """The factors or the whitening applied to the inputs and targets of training.

    Attributes:
        file: the name of the file that holds the scaling.
        input, target: factors, equal for an autoencoder, and 1 if there is a whitening.
        whitening: of inputs, or of a transcoder's input-target pairs. None if factors are used.
    """

    file: str
    input: float = 1.0
    target: float = 1.0
    whitening: Whitening | None = None


def normalization_lines(mode: Any, scaling: Scaling | None) -> list[tuple[str, str]]:
    """The line of `inspect` about normalize_activations. Empty if activations are not scaled."""
    if scaling is None:
        when = "at run time"
        if mode in (SCALED, WHITENED):
            when = "but no file holds the scale: activations are not scaled"
        return [] if mode in (None, "none") else [("normalization", f"{mode}, {when}")]
    done = f"scaled by {scaling.input:.4g}"
    if scaling.whitening is not None:
        done = "whitened"
    elif scaling.input != scaling.target:
        done = f"inputs scaled by {scaling.input:.4g}, targets by {scaling.target:.4g}"
    return [("normalization", f"{done} ({scaling.file}), folded on load")]


def scaling_of(folder: Path, mode: object, d_in: int, d_out: int | None = None) -> Scaling | None:
    """Read the scaling that a checkpoint's weights do not contain yet, or None without scaling.

    `mode` is normalize_activations of the config. d_out is the width of a transcoder's targets.
    CheckpointError if a file is damaged, or holds no usable scale.
    """
    if mode == WHITENED:
        return _whitening(folder / WHITENING, d_in + (d_out or 0))
    if mode != SCALED:
        return None
    path = folder / SCALER
    if path.is_file():
        value = read_json(path).get("scaling_factor")
    else:
        path = folder / STORE_STATE
        value = _factor_of_store(path)
    if value is None:
        return None
    pair = d_out is not None
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


def _whitening(path: Path, width: int) -> Scaling | None:
    if not path.is_file():
        return None
    square = (width, width)
    stored = read_tensors(path, {"mean": (width,), "matrix": square, "inverse_matrix": square})
    if has_values(path) and not all(tensor.isfinite().all() for tensor in stored.values()):
        raise CheckpointError(f"{path}: holds values that are not finite.")
    whitening = Whitening(*(stored[name].double() for name in ("mean", "matrix", "inverse_matrix")))
    return Scaling(WHITENING, whitening=whitening)


def folded(coder: PortableCoder, scaling: Scaling | None) -> PortableCoder:
    """A coder whose codes for raw activations are those of `coder` for scaled activations.

    A scaling of None leaves the coder unchanged.
    """
    if scaling is None:
        return coder
    if scaling.whitening is not None:
        # Some coders rank latents by decoder row norms, which unwhitening changes.
        coder = with_decoder_norms_folded(coder)
        changed = _whitened(coder, scaling.whitening)
    else:
        changed = {
            "encoder_weight": coder.tensors["encoder_weight"] * scaling.input,
            "decoder_weight": coder.tensors["decoder_weight"] / scaling.target,
            "decoder_bias": coder.tensors["decoder_bias"] / scaling.target,
        }
        if coder.shape.refine_passes:
            changed["flip_price"] = coder.tensors["flip_price"] / scaling.target**2
        if coder.shape.skip:
            ratio = scaling.input / scaling.target
            changed["skip_weight"] = coder.tensors["skip_weight"] * ratio
    shape = replace(coder.shape, normalize_activations="none")
    return replace(coder, shape=shape, tensors=coder.tensors | changed)


def _whitened(coder: PortableCoder, whitening: Whitening) -> dict[str, Tensor]:
    """The tensors that a whitening changes, computed in float64."""
    wide = {name: tensor.double() for name, tensor in coder.tensors.items()}
    source = target = whitening
    if coder.shape.transcoder:
        d_in = coder.shape.d_in
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
    """If a coder ranks by pre-activation times decoder row norm, scale all rows to norm 1.

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
    shape = replace(coder.shape, rescales_by_decoder_norm=False)
    return replace(coder, shape=shape, tensors=coder.tensors | changed)
