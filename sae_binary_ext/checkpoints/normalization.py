"""How SAELens scaled the activations that a training checkpoint was trained on.

SAELens keeps the scale in files beside the weights, and folds it into the weights when training
ends. A checkpoint of before that computes the right thing only once its scale is folded in.
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
STORE_STATE = "activations_store_state.safetensors"  # of SAELens before its version 6
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
    """What the inputs and targets of training were multiplied by, or whitened with.

    Attributes:
        file: the file it stands in.
        input, target: factors; an autoencoder's are the same. 1 beside a whitening.
        whitening: of inputs, of pairs in a transcoder; None beside factors.
    """

    file: str
    input: float = 1.0
    target: float = 1.0
    whitening: Whitening | None = None

    def in_words(self) -> str:
        """For a line of `inspect`."""
        if self.whitening is not None:
            done = "whitened"
        elif self.input == self.target:
            done = f"scaled by {self.input:.4g}"
        else:
            done = f"inputs scaled by {self.input:.4g}, targets by {self.target:.4g}"
        return f"{done} ({self.file}), folded on load"


def scaling_of(folder: Path, mode: object, d_in: int, d_out: int | None = None) -> Scaling | None:
    """The scaling beside a checkpoint's weights, that they do not contain yet.

    Args:
        folder: of the checkpoint.
        mode: normalize_activations of its config.
        d_in: width of its inputs.
        d_out: width of a transcoder's targets; None for an autoencoder.

    Returns:
        The scaling; None where the config asks for none, or no file tells it.

    Raises:
        CheckpointError: a file is damaged, or holds no usable scale.
    """
    if mode == WHITENED:
        return _whitening(folder, d_in + (d_out or 0))
    if mode != SCALED:
        return None
    if (folder / SCALER).is_file():
        value = read_json(folder / SCALER).get("scaling_factor")
        return None if value is None else _factors(folder / SCALER, value, d_out is not None)
    value = _factor_of_store(folder / STORE_STATE)
    return None if value is None else _factors(folder / STORE_STATE, value, d_out is not None)


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


def whitening_of_host(whitening: Whitening) -> dict[str, Tensor]:
    """The arguments of SAELens' fold_activation_whitening."""
    return {
        "mean": whitening.mean,
        "whitening_matrix": whitening.matrix,
        "unwhitening_matrix": whitening.inverse,
    }


def folded(coder: PortableCoder, scaling: Scaling | None) -> PortableCoder:
    """The coder for raw activations: same codes of them as of scaled ones before.

    Args:
        coder: as its file has it.
        scaling: of scaling_of; None leaves the coder as it is.
    """
    if scaling is None:
        return coder
    if scaling.whitening is not None:
        # Unwhitening changes the decoder rows' norms, by which some coders rank.
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
    """The coder with decoder rows of norm 1, for one that ranks by pre-activation times row norm.

    SAELens folds the norms likewise in what save_inference_model writes. Codes and outputs stay.
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
