"""Ways to damage a checkpoint: bytes, config values, tensors, pickles."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, "", "x", "topk",
    "float16", "layer_norm", "groupmax", "binary", "../..", [], [1], {}, {"a": {"b": []}},
]  # fmt: skip


def flip_bytes(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    # Damage to a header has the most effects, so half of the changes go there.
    limit = min(len(data), 600) if generator.random() < 0.5 else len(data)
    for _ in range(generator.randint(1, 4)):
        data[generator.randrange(limit)] = generator.randrange(256)
    file.write_bytes(bytes(data))


def truncate(file: Path, generator: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: generator.randrange(len(data))])


def lengthen(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes() + generator.randbytes(generator.randint(1, 64)))


def repeat_a_part(file: Path, generator: random.Random) -> None:
    data = file.read_bytes()
    start, end = sorted(generator.sample(range(len(data)), 2))
    file.write_bytes(data[:end] + data[start:end] + data[end:])


def change_config(config: dict[str, Any], generator: random.Random) -> None:
    """Change one field of a config, or of a table in the config, in place."""
    tables = [config, *(value for value in config.values() if isinstance(value, dict) and value)]
    table = generator.choice(tables)
    key = generator.choice(sorted(table))
    kind = generator.randrange(4)
    if kind == 0:
        table[generator.choice(["unknown", "d_out", "tied_decoder", "sae_binary_ext", "k"])] = (
            generator.choice(VALUES)
        )
    elif kind == 1:
        del table[key]
    else:
        table[key] = generator.choice(VALUES)


def change_tensors(tensors: dict[str, torch.Tensor], generator: random.Random) -> None:
    """Change one tensor of a state dict in place."""
    name = generator.choice(sorted(tensors))
    tensor = tensors[name].contiguous()
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to(torch.int32),
        lambda: tensor > 0,
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor.mT.contiguous() if tensor.ndim == 2 else tensor[:-1],
        lambda: tensor[: len(tensor) // 2].clone(),
        lambda: tensor[:0].clone(),
        lambda: tensor.clone().index_fill(0, torch.tensor([0]), float("nan")),
        lambda: tensor.clone().index_fill(0, torch.tensor([0]), float("inf")),
        lambda: tensor.clone().index_fill(0, torch.tensor([0]), float("-inf")),
        lambda: -tensor,
    ]
    kind = generator.randrange(len(changes) + 3)
    if kind == len(changes):
        del tensors[name]
    elif kind == len(changes) + 1:
        tensors["unknown"] = tensor.clone()
    elif kind == len(changes) + 2:
        tensors[name.upper()] = tensors.pop(name)
    else:
        tensors[name] = changes[kind]()


class Evil:
    """An object that makes a file when pickle loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def mutate(folder: Path, marker: Path, generator: random.Random) -> str:
    """Damage one of a coder's files. Returns the kind of damage."""
    files = sorted(folder.iterdir())
    file = generator.choice(files)
    kind = generator.choice(["bytes", "config", "tensors", "config", "tensors", "evil", "swap"])
    if kind == "bytes":
        how = generator.choice([flip_bytes, flip_bytes, truncate, lengthen, repeat_a_part])
        how(file, generator)
        return f"{how.__name__} {file.name}"
    if kind == "swap":
        shutil.copyfile(generator.choice([other for other in files if other != file]), file)
    elif kind == "evil" and (folder / "model.pt").exists():
        if generator.random() < 0.5:
            config = pickle.loads((folder / "config.pkl").read_bytes())
            config["params"][generator.choice(sorted(config["params"]))] = Evil(marker)
            (folder / "config.pkl").write_bytes(pickle.dumps(config))
        else:
            torch.save({"encoder.weight": Evil(marker)}, folder / "model.pt")
    elif kind == "config":
        _change_config_file(folder, generator)
    else:
        _change_weights_file(folder, generator)
    return kind


def _change_config_file(folder: Path, generator: random.Random) -> None:
    path = folder / "cfg.json"
    if path.exists():
        config = json.loads(path.read_text())
        change_config(config, generator)
        path.write_text(json.dumps(config))
        return
    config = pickle.loads((folder / "config.pkl").read_bytes())
    change_config(config, generator)
    (folder / "config.pkl").write_bytes(pickle.dumps(config))


def _change_weights_file(folder: Path, generator: random.Random) -> None:
    if (folder / "model.pt").exists():
        tensors = torch.load(folder / "model.pt", weights_only=True)
        change_tensors(tensors, generator)
        torch.save(tensors, folder / "model.pt")
        return
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change_tensors(tensors, generator)
    save_file(tensors, path)
