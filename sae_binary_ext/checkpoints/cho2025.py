"""The second paper's files: model.pt, a state dict, and config.pkl, a pickled dict.

Cho, Yang, Li, Kurkoski, Inoue, Binary Autoencoder for Mechanistic Interpretability of Large
Language Models (arXiv 2509.20997). Both files are pickles, which can run anything: config.pkl goes
through a reader that builds nothing but dicts, text and numbers, model.pt through torch's.
"""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, clearly, read_bytes
from sae_binary_ext.checkpoints.portable import (
    PortableCoder,
    Shape,
    notes_of,
    read_notes,
)
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS, CONFIG = "model.pt", "config.pkl"
FORMAT = "cho2025"
# In their state dict, of each tensor its name, and whether it lies the other way round.
PARAMETERS = {
    "encoder_weight": ("encoder.weight", False),
    "encoder_bias": ("encoder.bias", False),
    "decoder_weight": ("decoder.weight", True),
    "decoder_bias": ("decoder.bias", False),
}
# Both are the step at zero; they differ in their gradients only. "squarewave" is no step.
BINARIZATIONS = ("sign", "sign_s")
# What a pickle of dicts, lists, text and numbers is made of.
PLAIN_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET",
    "LONG_BINGET", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1",
    "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Reads what PLAIN_OPCODES can make, and no class or function."""

    @override
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is asked for")


def read(folder: Path) -> PortableCoder:
    """The coder of a folder.

    Raises:
        CheckpointError: something is missing, damaged or unsafe, or the coder has no 0/1 step.
    """
    config = _read_config(folder / CONFIG)
    state = _read_state(folder / WEIGHTS)
    return clearly(folder, lambda: _portable(config, state, folder / CONFIG))


def _portable(config: dict[str, Any], state: dict[str, Tensor], path: Path) -> PortableCoder:
    notes = config.get(NOTES_KEY)
    params = Fields(config, path).take("params", dict)
    fields = Fields(params, path)
    fields.take_choice("binarization_type", dict.fromkeys(BINARIZATIONS, True))
    fields.take_choice("output_activation", {"none": True}, "none")
    rate = fields.take_size("inner_expand_rate")
    fields.finish(ignored=("cycle_for_squarewave",))
    for name in ("encoder.weight", "decoder.weight"):
        if state[name].ndim != 2:
            raise CheckpointError(f"{name}: {state[name].ndim} dimensions where 2 are expected.")
    latents, d_in = state["encoder.weight"].shape
    if latents != d_in * rate:
        raise CheckpointError(
            f"inner_expand_rate={rate}, and encoder.weight is {[latents, d_in]}: {rate} times "
            f"{d_in} latents are expected."
        )
    place, rates, settings = read_notes(notes)
    rule = _read_rule(settings.pop("code_rule", {}), path)
    tensors = {
        key: state[name].T if turned else state[name] for key, (name, turned) in PARAMETERS.items()
    }
    # The step is at zero, and the logarithm of a threshold of zero is -inf.
    dtype = torch.promote_types(state["encoder.weight"].dtype, torch.float32)
    tensors["log_threshold"] = torch.full((latents,), -torch.inf, dtype=dtype)
    shape = Shape(d_in, d_in, latents, rule)
    return PortableCoder(shape, tensors, place, rates, {**settings, FORMAT: params})


def _read_rule(kept: dict[str, Any], path: Path) -> CodeRule:
    """The step at zero, with the gradient of the paper's formula unless it came with another."""
    fields = Fields(kept, path)
    k = fields.take_size("k", 32)
    surrogate = fields.take("surrogate", str, "sigmoid")
    temperature = fields.take("surrogate_temperature", float, 1.0)
    fields.finish()
    return CodeRule("threshold", k, surrogate, temperature)


def _read_config(path: Path) -> dict[str, Any]:
    data = read_bytes(path)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in PLAIN_OPCODES:
                raise CheckpointError(
                    f"{path}: asks to run code or build objects ({opcode.name}), which no config "
                    "of this format does. Do not open it with pickle."
                )
            # An unpickler makes room for as many objects as the number says.
            if "PUT" in opcode.name and not 0 <= int(argument or 0) <= len(data):
                raise CheckpointError(f"{path}: {opcode.name} {argument} in {len(data)} bytes.")
        config = _PlainUnpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    # A damaged pickle raises whatever its damage leads to.
    except Exception as error:
        raise CheckpointError(f"{path}: is no pickled config: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__}, not a dict.")
    return config


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            # As torch.save writes it. Compressed, a small file could grow without bounds.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path}: is compressed; torch.save does not.")
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise CheckpointError(f"{path}: claims to hold more than its {size} bytes.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    # torch.load raises whatever the damage leads to; it runs no code that the file brings.
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a state dict: {error}.") from error
    names = {name for name, _ in PARAMETERS.values()}
    if not isinstance(state, dict) or state.keys() != names:
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: holds {found}, where {sorted(names)} are expected.")
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        # A view can claim to be any size.
        if not plain or tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path}: {name} is no plain tensor of this file.")
    return {name: tensor.detach() for name, tensor in state.items()}


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as the paper's code does.

    Raises:
        CheckpointError: the paper's files have no place for something of the coder.
    """
    shape = coder.shape
    _refuse_inexpressible(coder)
    before = coder.settings.get(FORMAT, {})
    params: dict[str, Any] = {
        "inner_expand_rate": shape.latents // shape.d_in,
        "binarization_type": before.get("binarization_type", BINARIZATIONS[0]),
        "output_activation": "none",
        "cycle_for_squarewave": before.get("cycle_for_squarewave", 2),
    }
    notes = notes_of(coder)
    notes["settings"] = {key: value for key, value in coder.settings.items() if key != FORMAT}
    rule = shape.rule
    notes["settings"]["code_rule"] = {
        "k": rule.k,
        "surrogate": rule.surrogate,
        "surrogate_temperature": rule.surrogate_temperature,
    }
    state = {
        name: (coder.tensors[key].T if turned else coder.tensors[key]).contiguous()
        for key, (name, turned) in PARAMETERS.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / WEIGHTS)
    (folder / CONFIG).write_bytes(pickle.dumps({"params": params, NOTES_KEY: notes}, protocol=4))


def _refuse_inexpressible(coder: PortableCoder) -> None:
    shape = coder.shape
    reasons = {
        "a coder with values": not shape.binary,
        "a transcoder": shape.transcoder,
        "a skip connection": shape.skip,
        f"selection={shape.rule.selection!r}": shape.rule.selection != "threshold",
        "apply_b_dec_to_input=True": shape.subtracts_decoder_bias,
        f"normalize_activations={shape.normalize_activations!r}": (
            shape.normalize_activations != "none"
        ),
        f"reshape_activations={shape.reshape_activations!r}": shape.reshape_activations != "none",
        f"d_sae={shape.latents}, no multiple of d_in={shape.d_in}": shape.latents % shape.d_in != 0,
    }
    if shape.binary:
        above = bool((coder.tensors["log_threshold"] != -torch.inf).any())
        reasons["thresholds other than zero"] = above
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise CheckpointError(
            f"{'; '.join(found)}: the second paper's files hold binary autoencoders with a step at "
            "zero, whose input goes to the encoder as it is."
        )
