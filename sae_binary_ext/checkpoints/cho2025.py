"""Reads and writes the second paper's files: a state dict and a pickled dict of settings.

Cho, Yang, Li, Kurkoski, Inoue, Binary Autoencoder for Mechanistic Interpretability of Large
Language Models (arXiv 2509.20997). The training script writes model_T.pt and log_T.pkl, where T
is a time. The evaluation reads model.pt and config.pkl. Pickles could run any code, so pickles.py
and torch_files.py read pickles without running anything.
"""

import logging
import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, clearly, open_config, shortened
from sae_binary_ext.checkpoints.pickles import PickleError, make_number, read_pickle
from sae_binary_ext.checkpoints.portable import PortableCoder, Shape, notes_of, read_notes
from sae_binary_ext.checkpoints.torch_files import Saved, read_saved
from sae_binary_ext.coding.selection import THRESHOLD, CodeRule
from sae_binary_ext.saving import NOTES_KEY

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.pt", "config.pkl"
# File names that the paper's training script gives.
REPORT_WEIGHTS, REPORT_CONFIG = "model_*.pt", "log_*.pkl"
FORMAT = "cho2025"
PAPER_CODE = "https://github.com/hc495/Binary_Autoencoder"
# The name of each tensor in the state dict. decoder.weight is stored transposed.
PARAMETERS = {
    "encoder_weight": "encoder.weight", "encoder_bias": "encoder.bias",
    "decoder_weight": "decoder.weight", "decoder_bias": "decoder.bias",
}  # fmt: skip
DECODER_BIAS = "decoder.bias"
# Prefixes that DataParallel and torch.compile add to each name.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
# A log needs nine bytes for each step and curve: 84 MB for 2,000 epochs over a million tokens.
LARGEST_LOG_BYTES = 4 * 2**30
# Both values mean a step at zero, with different gradients. "squarewave" is not a step.
BINARIZATIONS = ("sign", "sign_s")
# Settings to assume if a coder's files do not state them.
UNSAID = {"binarization_type": "sign_s", "output_activation": "none"}
# Fields that training scripts record of a run and that do not change what a coder computes.
RUN_FIELDS = (
    "batch_size", "bias", "covarience_weight", "cuda", "current_time", "cycle_for_squarewave",
    "dataset_split", "dont_save_log", "dont_save_model", "entropy_start_epoch",
    "entropy_threshold", "entropy_weight", "feature_path", "layer", "layered_feature", "lr",
    "num_epochs", "save_dir", "weight_decay",
)  # fmt: skip


def read(folder: Path) -> PortableCoder:
    """Read a folder's coder. CheckpointError if files are damaged or codes are no step at zero."""
    found = sorted({*folder.glob(WEIGHTS), *folder.glob(REPORT_WEIGHTS)})
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: holds {[path.name for path in found]}; expected one coder in a folder of "
            "its own. Move each with its config (log_T.pkl belongs to model_T.pt) into a folder."
        )
    (weights,) = found
    try:
        saved = read_saved(weights)
    # A damaged archive can raise any error. Nothing in the file is run.
    except Exception as error:
        raise CheckpointError(
            f"{weights}: cannot be read as a state dict: {error}. If it is yours, load it where "
            "you saved it and save only its weights: "
            f"torch.save(model.state_dict(), '{WEIGHTS}')."
        ) from error
    state = _state(saved, weights)
    # Take the log of the same time, or else config.pkl, or else the only log.
    own_log, logs = f"log{weights.stem.removeprefix('model')}.pkl", list(folder.glob(REPORT_CONFIG))
    candidates = [folder / own_log, folder / CONFIG, *(logs if len(logs) == 1 else [])]
    path = next((path for path in candidates if path.is_file()), None)
    config = _without_config(saved, weights) if path is None else _read_config(path)
    return clearly(folder, lambda: _portable(config, state, path or weights))


def _state(saved: Saved, path: Path) -> dict[str, Tensor]:
    """The tensors under the paper's names. decoder.bias may be missing."""
    stored = {WRAPPERS.sub("", name): name for name in saved.places}
    names = set(PARAMETERS.values())
    if not names - {DECODER_BIAS} <= stored.keys() <= names:
        raise CheckpointError(
            f"{path}: holds weights {sorted(stored)}, where {sorted(names)} are expected "
            f"({DECODER_BIAS} may be missing)."
        )
    try:
        return {name: saved.tensor(stored[name]) for name in stored}
    except PickleError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def _without_config(saved: Saved, weights: Path) -> dict[str, Any]:
    """The settings that a pickled module states, or the paper's settings if it states none."""
    told = {name: saved.attributes[name] for name in UNSAID if name in saved.attributes}
    if not told:
        logger.warning(
            "%s: there is no config beside it. It is read as the paper's step at zero, without "
            "output activation. This is wrong for binarization_type squarewave and for the "
            "paper's SAE baselines.",
            weights,
        )
    return {**UNSAID, **told}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open_config(path, LARGEST_LOG_BYTES) as stream:
            config = read_pickle(stream, make_number)
    except PickleError as error:
        raise CheckpointError(
            f"{path}: is not a pickled config: {error}. Do not open it with pickle."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__} where a dict is expected.")
    return config


def _portable(config: dict[str, Any], state: dict[str, Tensor], path: Path) -> PortableCoder:
    # A config written by hand, as in the paper's readme, has the parameters at its top level.
    params = Fields(config, path).take("params", dict) if "params" in config else config
    _refuse_others(params, path)
    fields = Fields(params, path)
    fields.take_choice("binarization_type", dict.fromkeys(BINARIZATIONS, True))
    fields.take_choice("output_activation", {"none": True}, "none")
    fields.take_size("inner_expand_rate", 1)
    fields.finish(ignored=(*RUN_FIELDS, NOTES_KEY))
    for name in ("encoder.weight", "decoder.weight"):
        if state[name].ndim != 2:
            raise CheckpointError(f"{name}: {state[name].ndim} dimensions where 2 are expected.")
    latents, d_in = state["encoder.weight"].shape
    rate = params.get("inner_expand_rate")
    if rate is not None and latents != d_in * rate:
        raise CheckpointError(
            f"inner_expand_rate={rate}, but encoder.weight is {[latents, d_in]}. Expected {rate} "
            f"times {d_in} latents."
        )
    place, rates, settings = read_notes(config.get(NOTES_KEY))
    rule = _read_rule(settings.pop("code_rule", {}), path)
    # Keep the values that JSON can hold.
    kept = {
        key: value
        for key, value in params.items()
        if isinstance(value, bool | int | str | None)
        or (isinstance(value, float) and math.isfinite(value))
    }
    if DECODER_BIAS not in state:
        kept["bias"] = False
        state[DECODER_BIAS] = state["decoder.weight"].new_zeros(len(state["decoder.weight"]))
    tensors = {key: state[name] for key, name in PARAMETERS.items()}
    tensors["decoder_weight"] = tensors["decoder_weight"].T
    # The step is at zero, and the logarithm of zero is -inf.
    dtype = torch.promote_types(state["encoder.weight"].dtype, torch.float32)
    tensors["log_threshold"] = torch.full((latents,), -torch.inf, dtype=dtype)
    shape = Shape(d_in, d_in, latents, rule)
    return PortableCoder(shape, tensors, place, rates, {**settings, FORMAT: kept})


def _refuse_others(params: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for other coders of the paper, and name the class that loads them."""
    binarization, activation = (params.get(name) for name in UNSAID)
    loader = "BinarizedAutoencoder of module/binarized_autoencoder.py"
    if "inner_activation" in params:
        told = f"inner_activation={shortened(params['inner_activation'])}"
        reason = f"{told}: one of the paper's baselines, whose latents have values"
        loader = "SAE of module/SAE_baseline.py"
    elif binarization == "squarewave":
        rule = "a code is 1 if the pre-activation modulo 2 is below 1, which is not a step"
        reason = f"binarization_type='squarewave': {rule}"
    elif activation in ("sigmoid", "tanh", "relu"):
        without = "coders of SAELens and sparsify have no output activation"
        reason = f"output_activation={activation!r}: {without}"
    else:
        return
    raise CheckpointError(
        f"{path}: {reason}. Load it with {loader} ({PAPER_CODE}). This package loads coders that "
        "were trained with --binarization_type sign or sign_s and --output_activation none."
    )


def _read_rule(kept: dict[str, Any], path: Path) -> CodeRule:
    """The step at zero, with the paper's surrogate gradient unless the notes name another."""
    fields = Fields(kept, path)
    k = fields.take_size("k", 32)
    surrogate = fields.take("surrogate", str, "sigmoid")
    temperature = fields.take("surrogate_temperature", float, 1.0)
    fields.finish()
    return CodeRule(THRESHOLD.name, k, surrogate, temperature)


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as the paper's code does. CheckpointError if those files cannot store it."""
    shape, rule = coder.shape, coder.shape.rule
    _refuse_inexpressible(coder)
    before = coder.settings.get(FORMAT, {})
    params = {
        **{key: value for key, value in before.items() if key in RUN_FIELDS},
        "inner_expand_rate": shape.latents // shape.d_in,
        "binarization_type": before.get("binarization_type", BINARIZATIONS[0]),
        "output_activation": "none",
        "cycle_for_squarewave": before.get("cycle_for_squarewave", 2),
    }
    notes = notes_of(coder, FORMAT)
    stored = ("k", "surrogate", "surrogate_temperature")
    notes["settings"]["code_rule"] = {name: getattr(rule, name) for name in stored}
    state = {name: coder.tensors[key].contiguous() for key, name in PARAMETERS.items()}
    state["decoder.weight"] = coder.tensors["decoder_weight"].T.contiguous()
    if before.get("bias") is False and not state[DECODER_BIAS].any():
        del state[DECODER_BIAS]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / WEIGHTS)
    (folder / CONFIG).write_bytes(pickle.dumps({"params": params, NOTES_KEY: notes}, protocol=4))


def _refuse_inexpressible(coder: PortableCoder) -> None:
    shape = coder.shape
    normalized, reshaped = shape.normalize_activations, shape.reshape_activations
    multiple = f"d_sae={shape.latents}, not a multiple of d_in={shape.d_in}"
    reasons = {
        "a coder with values": not shape.binary,
        "a transcoder": shape.transcoder,
        "a skip connection": shape.skip,
        f"selection={shape.rule.selection!r}": not shape.rule.kind.alone,
        "apply_b_dec_to_input=True": shape.subtracts_decoder_bias,
        f"normalize_activations={normalized!r}": normalized != "none",
        f"reshape_activations={reshaped!r}": reshaped != "none",
        f"refine_passes={shape.refine_passes}": shape.refine_passes > 0,
        multiple: shape.latents % shape.d_in != 0,
        "thresholds other than zero": (
            shape.binary and bool((coder.tensors["log_threshold"] != -torch.inf).any())
        ),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise CheckpointError(
            f"{'; '.join(found)}: the second paper's files hold binary autoencoders with a step at "
            "zero that encode the raw input. Choose another format."
        )
