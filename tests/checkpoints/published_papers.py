"""Coders in files of the two papers' own code, with plain formulas for codes and outputs."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

D, LATENTS, K = 8, 32, 4
MODEL = "HuggingFaceTB/SmolLM2-135M"


def grid(*shape: int, step: float) -> Tensor:
    """Random numbers of few bits, so that sums of their products are exact in any order."""
    return torch.randint(-8, 9, shape) * step


# The first paper (Quirke et al.): sparsify's branches binary, binary-threshold, gumbel-binary.

BRANCH = {
    "activation": "topk_binary", "expansion_factor": 32, "normalize_decoder": False,
    "num_latents": LATENTS, "k": K, "multi_topk": False, "skip_connection": False,
    "transcode": True, "ste": "sigmoid", "ste_temperature": 2.0, "tied_decoder": False,
    "matryoshka": False, "matryoshka_groups": 5, "d_in": D,
}  # fmt: skip
AUTOENCODES = {"transcode": False}
EARLY = ("ste", "ste_temperature", "tied_decoder", "matryoshka", "matryoshka_groups")


def k_largest(values: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter(1, values.topk(K).indices, 1.0)


def largest_of_groups(values: Tensor) -> Tensor:
    groups = values.unflatten(1, (K, -1))
    best = groups.argmax(-1, keepdim=True)
    return torch.zeros_like(groups).scatter(-1, best, 1.0).flatten(1)


# For each activation: the codes for given pre-activations and thresholds.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "topk_binary": lambda pre, threshold: k_largest(pre - threshold) * (pre > threshold),
    "binary": lambda pre, threshold: (pre > threshold).float(),
    # Only training samples codes. The largest latent of a group fires even below zero.
    "gumbel_binary": lambda pre, threshold: largest_of_groups(pre),
    "topk": lambda pre, threshold: k_largest(pre) * pre.relu(),
}


@dataclass(frozen=True)
class Quirke:
    """A coder of the first paper.

    Attributes:
        fields: fields of cfg.json that differ from BRANCH.
        absent: fields of BRANCH that are missing in the file.
        unit_rows: whether the decoder rows have norm 1.
    """

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    absent: tuple[str, ...] = ()
    unit_rows: bool = False

    @property
    def config(self) -> dict[str, Any]:
        config = BRANCH | self.fields
        return {key: value for key, value in config.items() if key not in self.absent}

    def save(self, root: Path) -> tuple[Path, dict[str, Tensor]]:
        """Write a run of one coder. Returns the coder's folder and its tensors."""
        config = self.config
        tensors = {
            "encoder.weight": grid(LATENTS, D, step=1 / 16),
            # With these biases, no two pre-activations of a token are equal.
            "encoder.bias": grid(LATENTS, step=1 / 16) + torch.arange(LATENTS) / 2**14,
            "W_dec": grid(LATENTS, D, step=1 / 16),
            "b_dec": grid(D, step=1 / 16),
        }
        if self.unit_rows:
            tensors["W_dec"] = torch.randn(LATENTS, D)
            tensors["W_dec"] /= tensors["W_dec"].norm(dim=1, keepdim=True)
        if config["activation"] in ("topk_binary", "binary"):
            tensors["log_threshold"] = torch.randn(LATENTS) - 1
        if config["skip_connection"]:
            tensors["W_skip"] = grid(D, D, step=1 / 16)
        folder = root / ("layers.9.mlp" if config["transcode"] else "layers.9")
        folder.mkdir(parents=True)
        (root / "config.json").write_text(json.dumps({"model": MODEL, "sae": {"k": 32}}))
        (folder / "cfg.json").write_text(json.dumps(config))
        save_file(tensors, folder / "sae.safetensors")
        return folder, tensors

    def formula(self, tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        # For activation binary, forward of the paper's branch does not subtract b_dec.
        centred = config["transcode"] or config["activation"] == "binary"
        inner = x if centred else x - tensors["b_dec"]
        pre = inner @ tensors["encoder.weight"].T + tensors["encoder.bias"]
        threshold = tensors.get("log_threshold", torch.zeros(LATENTS)).exp()
        codes = FORMULAS[config["activation"]](pre, threshold)
        output = codes @ tensors["W_dec"] + tensors["b_dec"]
        return codes, output + x @ tensors["W_skip"].T if "W_skip" in tensors else output


QUIRKE = {
    "topk_binary transcoder": Quirke(),
    "topk_binary autoencoder": Quirke({**AUTOENCODES, "ste": "rectangle", "ste_temperature": 1.0}),
    "binary transcoder": Quirke({"activation": "binary"}),
    "binary autoencoder": Quirke({**AUTOENCODES, "activation": "binary"}),
    "gumbel transcoder": Quirke({"activation": "gumbel_binary"}),
    "gumbel autoencoder": Quirke({**AUTOENCODES, "activation": "gumbel_binary"}),
    "stock topk transcoder": Quirke({"activation": "topk"}),
    "stock topk autoencoder": Quirke({**AUTOENCODES, "activation": "topk"}),
    "stock topk of branch binary-threshold": Quirke(
        {"activation": "topk", "ste_thresh_est": False}, absent=EARLY[2:]
    ),
    "normalize_decoder autoencoder": Quirke(
        {**AUTOENCODES, "normalize_decoder": True}, unit_rows=True
    ),
    "normalize_decoder transcoder": Quirke({"normalize_decoder": True}),
    "normalize_decoder gumbel": Quirke(
        {**AUTOENCODES, "activation": "gumbel_binary", "normalize_decoder": True}, unit_rows=True
    ),
    "skip transcoder": Quirke({"skip_connection": True, "num_latents": 0, "expansion_factor": 4}),
    "stock skip transcoder": Quirke({"activation": "topk", "skip_connection": True}),
    "before tied_decoder": Quirke({"normalize_decoder": True}, absent=EARLY[2:]),
    "before ste": Quirke({**AUTOENCODES, "normalize_decoder": True}, absent=EARLY),
}


# The second paper (Cho et al.): files of the repository hc495/Binary_Autoencoder.

TIME = "20250930_101500_123456"
FOUR: dict[str, Any] = {
    "inner_expand_rate": LATENTS // D, "binarization_type": "sign_s", "output_activation": "none",
    "cycle_for_squarewave": 2,
}  # fmt: skip
SEVENTEEN: dict[str, Any] = {
    "feature_path": "feature.pkl", "layered_feature": True, "layer": 11, **FOUR, "cuda": True,
    "dataset_split": 0.8, "lr": 5e-4, "weight_decay": 0.0, "batch_size": 512, "num_epochs": 2000,
    "entropy_weight": 1e-7, "covarience_weight": 1e-7, "entropy_threshold": 0.0,
    "entropy_start_epoch": 500,
}  # fmt: skip
LOG = {"train_loss_log": [0.5, 0.25] * 3000, "val_loss_log": [1.0]}


def cho_state() -> dict[str, Tensor]:
    """Random weights that are exact in bfloat16 too."""
    return {
        "encoder.weight": torch.randint(-2, 3, (LATENTS, D)) / 2,
        "encoder.bias": torch.randint(-2, 3, (LATENTS,)) / 2,
        "decoder.weight": torch.randint(-2, 3, (D, LATENTS)) / 2,
        "decoder.bias": torch.randint(-2, 3, (D,)) / 2,
    }


def cho_formula(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    state = {name: tensor.float() for name, tensor in state.items()}
    codes = ((x @ state["encoder.weight"].T + state["encoder.bias"]) > 0).float()
    return codes, codes @ state["decoder.weight"].T + state.get("decoder.bias", torch.zeros(D))


def pickled(value: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


def as_script(root: Path, time: str = TIME) -> Path:
    folder = root / f"report_{time}"
    folder.mkdir(parents=True)
    (folder / "experiment_params.txt").write_text("lr: 0.0005\n")
    (folder / f"log_{time}.pkl").write_bytes(pickled({"log": LOG, "params": SEVENTEEN}))
    return folder / f"model_{time}.pt"


def renamed(root: Path) -> Path:
    (root / "config.pkl").write_bytes(pickled({"log": LOG, "params": SEVENTEEN}))
    return root / "model.pt"


def with_config(config: Any, protocol: int = 4) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        (root / "config.pkl").write_bytes(pickled(config, protocol))
        return root / "model.pt"

    return write


def four(root: Path) -> Path:
    return with_config({"params": FOUR})(root)


def without_config(root: Path) -> Path:
    return root / "model.pt"


def huge_log(root: Path) -> Path:
    """Write a config of over 64 MiB, nearly all of which is a curve in pickle's own batches."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    batch = b"(" + (b"G" + bytes(8)) * 1000 + b"e"
    with (root / "config.pkl").open("wb") as file:
        file.write(b"\x80\x02(" + text("log") + b"(" + text("train_loss_log") + b"]")
        for _ in range(7500):
            file.write(batch)
        file.write(b"d" + text("params") + pickled(SEVENTEEN, 2)[2:-1] + b"d.")
    return root / "model.pt"


def with_numpy_numbers(protocol: int, module: str) -> Callable[[Path], Path]:
    """Settings whose numbers are numpy's, pickled by numpy 1 (numpy.core) or 2 (numpy._core)."""
    kinds = {bool: np.bool_, int: np.int64, float: np.float64, str: np.str_}
    params = {name: kinds[type(value)](value) for name, value in SEVENTEEN.items()}
    log = {"train_loss_log": [np.float32(0.5)] * 9}

    def write(root: Path) -> Path:
        data = pickled({"log": log, "params": params}, protocol)
        if module == "numpy.core":
            # In protocol 4, the length of a name stands before the name.
            data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            data = data.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        (root / "config.pkl").write_bytes(without_frames(data))
        return root / "model.pt"

    return write


def without_frames(data: bytes) -> bytes:
    """Remove the frame of a pickle, because the length in the frame is no longer right."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


def plainly(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def in_the_old_way(state: dict[str, Tensor], path: Path) -> None:
    """Save the state dict as torch before 1.6 did."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


def from_the_gpu(state: dict[str, Tensor], path: Path) -> None:
    """Save a state dict whose storages are marked as on the device cuda:0."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
                assert b"cuda:0" in data
            target.writestr(entry, data)


def from_data_parallel(state: dict[str, Tensor], path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)


def in_bfloat16(state: dict[str, Tensor], path: Path) -> None:
    torch.save({name: tensor.bfloat16() for name, tensor in state.items()}, path)


def without_decoder_bias(state: dict[str, Tensor], path: Path) -> None:
    """Save no decoder bias. The paper's script has one only if --bias is given."""
    del state["decoder.bias"]
    torch.save(state, path)


class BinarizedAutoencoder(nn.Module):
    """A module like the paper's, whose pickle names a class that no reader can import."""

    def __init__(self, state: dict[str, Tensor], binarization_type: str, activation: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, LATENTS)
        self.decoder = nn.Linear(LATENTS, D)
        self.load_state_dict(state)
        self.binarization_type = binarization_type
        # For activation none, the paper's code has a lambda, which pickle cannot store.
        self.output_activation = {"sigmoid": nn.Sigmoid(), "none": "none"}[activation]


def whole_module(
    binarization_type: str = "sign_s", activation: str = "none", old: bool = False
) -> Callable[[dict[str, Tensor], Path], None]:
    """Save the whole module with torch.save(model), although its weights would be enough."""

    def save(state: dict[str, Tensor], path: Path) -> None:
        name = "module.binarized_autoencoder"
        kind = type("BinarizedAutoencoder", (BinarizedAutoencoder,), {"__module__": name})
        for part in ("module", name):
            sys.modules[part] = types.ModuleType(part)
        vars(sys.modules[name])["BinarizedAutoencoder"] = kind
        model = kind(state, binarization_type, activation)
        torch.save(model, path, _use_new_zipfile_serialization=not old)
        del sys.modules[name], sys.modules["module"]

    return save


Save = Callable[[dict[str, Tensor], Path], None]


@dataclass(frozen=True)
class Cho:
    """A coder of the second paper.

    Attributes:
        config: writes the config beside the weights, and returns the path for the weights.
        save: writes the weights.
    """

    config: Callable[[Path], Path] = four
    save: Save = plainly

    def write(self, root: Path) -> dict[str, Tensor]:
        """Write the coder's files. Returns the coder's state dict."""
        root.mkdir(parents=True, exist_ok=True)
        state = cho_state()
        self.save(state, self.config(root))
        return state


README_CONFIG = {**FOUR, "cycle_for_squarewave": None}
CHO = {
    "the script's own files": Cho(as_script),
    "the script's own files, no decoder bias": Cho(as_script, without_decoder_bias),
    "renamed": Cho(renamed),
    "four parameters": Cho(),
    "flat config": Cho(with_config(README_CONFIG)),
    "no config": Cho(without_config),
    "log of 70 MB": Cho(huge_log),
    "no decoder bias": Cho(save=without_decoder_bias),
    "old save": Cho(save=in_the_old_way),
    "DataParallel": Cho(save=from_data_parallel),
    "from a GPU": Cho(save=from_the_gpu),
    "bfloat16": Cho(save=in_bfloat16),
    "whole module": Cho(save=whole_module()),
    "whole module alone": Cho(without_config, whole_module()),
    "whole module, old save": Cho(save=whole_module(old=True)),
    **{f"protocol {n}": Cho(with_config({"params": FOUR}, n)) for n in range(6)},
    **{
        f"{module} numbers, protocol {n}": Cho(with_numpy_numbers(n, module))
        for module in ("numpy.core", "numpy._core")
        for n in range(6)
    },
}


def _params(**changes: Any) -> Callable[[Path], Path]:
    return with_config({"log": {}, "params": SEVENTEEN | changes})


# The paper's SAE and transcoder baselines have inner_activation, not binarization_type.
BASELINE = {key: value for key, value in SEVENTEEN.items() if key != "binarization_type"}
BASELINE |= {"inner_activation": "topk", "bias": True, "l1_norm_weight": 1e-7, "save_dir": "logs"}
LOADS = "This package loads coders that were trained with --binarization_type sign or sign_s"
# Coders that are refused, each with the reason and the remedy in the error.
REFUSED = {
    "squarewave": (
        Cho(_params(binarization_type="squarewave")),
        f"binarization_type='squarewave': .*not a step. Load it with Binarized.*{LOADS}",
    ),
    "output relu": (
        Cho(_params(output_activation="relu")),
        f"output_activation='relu': .*no output activation. Load it with Binarized.*{LOADS}",
    ),
    "SAE baseline": (
        Cho(with_config({"log": {}, "params": BASELINE})),
        f"inner_activation='topk': .*Load it with SAE of module/SAE_baseline.py.*{LOADS}",
    ),
    "module of a squarewave alone": (
        Cho(without_config, whole_module("squarewave")),
        f"binarization_type='squarewave': .*{LOADS}",
    ),
    "module with an output sigmoid alone": (
        Cho(without_config, whole_module(activation="sigmoid")),
        f"output_activation='sigmoid': .*{LOADS}",
    ),
    "other sizes": (
        Cho(_params(inner_expand_rate=5)),
        r"inner_expand_rate=5, but encoder.weight is \[32, 8\]. Expected 5 times 8 latents",
    ),
    "another field": (Cho(_params(threshold=0.5)), r"unknown fields \['threshold'\]"),
}
