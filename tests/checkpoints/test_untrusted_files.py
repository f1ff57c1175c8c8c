"""Any file loads as a coder that it describes or raises one clear error, and runs no code."""

import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from tests.checkpoints.coders import CASES, CHO, HOOKPOINT, QUIRKE, SAELENS, SPARSIFY
from tests.checkpoints.mutations import Evil, mutate
from tests.limits import little_memory

MUTATIONS_A_CODER = 300
CODERS = [
    ("saelens topk", SAELENS),
    ("saelens skip transcoder", SAELENS),
    ("saelens continuous", SAELENS),
    ("sparsify topk_binary", SPARSIFY),
    ("sparsify continuous skip transcoder", SPARSIFY),
    ("sparsify binary uncentred", QUIRKE),
    ("saelens step at zero", CHO),
]


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(folder / "model.pt", weights_only=True)
    except RuntimeError:
        # The header is damaged. Entries have checksums, so an entry that can be read is intact.
        whole = folder.parents[1] / "whole" / HOOKPOINT
        return torch.load(whole / "model.pt", weights_only=True)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file under SAELens' names, read without this package."""
    if (folder / "model.pt").exists():
        stored = state_dict(folder)
        stored["W_dec"] = stored.pop("decoder.weight").T
        # A coder that was trained without --bias has no decoder bias.
        none = torch.zeros_like(stored["W_dec"][0])
        stored["b_dec"] = stored.pop("decoder.bias", none)
    elif (folder / "sae.safetensors").exists():
        stored = load_file(folder / "sae.safetensors")
        stored.pop("firing_rates", None)
    else:
        return load_file(folder / "sae_weights.safetensors")
    stored["W_enc"] = stored.pop("encoder.weight").T
    stored["b_enc"] = stored.pop("encoder.bias")
    return stored


def assert_loaded_as_stored(sae: Any, folder: Path) -> None:
    state = sae.state_dict()
    of_saelens = (folder / "sae_weights.safetensors").exists()
    for name, tensor in stored_tensors(folder).items():
        # Thresholds load as float32 or wider. SAELens' tensors are cast to the config's dtype.
        cast = of_saelens or name == "log_threshold"
        stored = tensor.to(state[name].dtype) if cast else tensor
        torch.testing.assert_close(state[name], stored, atol=0, rtol=0)
    if (folder / "cfg.json").exists():
        config = json.loads((folder / "cfg.json").read_text())
        assert sae.cfg.d_in == config["d_in"]
        assert sae.cfg.k == config.get("k", 32)
        if "architecture" not in config:
            selection = SELECTION_OF_ACTIVATION.get(config.get("activation", "topk"))
            assert getattr(sae.cfg, "selection", None) == selection
        else:
            assert sae.cfg.architecture() == config["architecture"].replace("_entropy", "")
            assert str(sae.W_enc.dtype) == f"torch.{config['dtype'].removeprefix('torch.')}"
            for key in ("selection", "apply_b_dec_to_input", "normalize_activations"):
                assert getattr(sae.cfg, key, None) == config.get(key)


@pytest.mark.parametrize(("name", "form"), CODERS)
def test_damaged_files_load_as_they_say_or_raise_our_error(name: str, form: str, tmp_path: Path):
    convert(CASES[name].save(tmp_path), tmp_path / "whole" / HOOKPOINT, form)
    marker = tmp_path / "run by a pickle"
    folder = tmp_path / "damaged" / HOOKPOINT
    loaded = refused = 0
    for seed in range(MUTATIONS_A_CODER):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole" / HOOKPOINT, folder)
        how = mutate(folder, marker, random.Random(seed))
        try:
            sae = load_coder(folder, host="saelens")
        except CheckpointError:
            refused += 1
        else:
            loaded += 1
            assert_loaded_as_stored(sae, folder)
        try:
            load_coder(folder, host="sparsify")
            describe(folder)
        except CheckpointError:
            pass
        assert not marker.exists(), how
    assert min(loaded, refused) > MUTATIONS_A_CODER / 10


def huge_view(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    state["encoder.weight"] = torch.zeros(1).expand(2**20, 2**18)
    torch.save(state, folder / "model.pt")


def huge_compressed_entry(folder: Path) -> None:
    data = (folder / "model.pt").read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            big = entry.filename.endswith("data/0")
            target.writestr(entry.filename, bytes(2**24) if big else source.read(entry))


def sparse_tensor(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    state["encoder.weight"] = torch.zeros(2, 2).to_sparse()
    torch.save(state, folder / "model.pt")


def huge_memo(folder: Path) -> None:
    (folder / "config.pkl").write_bytes(b"\x80\x04}r" + (2**31 - 1).to_bytes(4, "little") + b".")


def evil_config(folder: Path) -> None:
    (folder / "config.pkl").write_bytes(pickle.dumps({"params": Evil(folder / "marker")}))


def evil_weights(folder: Path) -> None:
    torch.save(Evil(folder / "marker"), folder / "model.pt")


def evil_old_weights(folder: Path) -> None:
    torch.save(Evil(folder / "marker"), folder / "model.pt", _use_new_zipfile_serialization=False)


def evil_log(folder: Path) -> None:
    config = pickle.loads((folder / "config.pkl").read_bytes())
    data = pickle.dumps({"log": Evil(folder / "marker"), **config})
    (folder / "config.pkl").write_bytes(data)


def evil_module(folder: Path) -> None:
    """Write a module whose hooks and parts would run code when pickle builds it."""
    module = torch.nn.Linear(2, 2)
    vars(module)["_forward_hooks"] = {0: Evil(folder / "marker")}
    vars(module)["_modules"] = {"encoder": Evil(folder / "marker")}
    torch.save(module, folder / "model.pt")


def huge_old_storage(folder: Path) -> None:
    """Write a file in torch's old format that claims to hold 2**50 values."""
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)
    count = struct.pack("<q", state["encoder.weight"].numel())
    data = (folder / "model.pt").read_bytes()
    assert data.count(count) >= 1
    (folder / "model.pt").write_bytes(data.replace(count, struct.pack("<q", 2**50)))


def deep_key(folder: Path) -> None:
    """Write a dict key so deep that hashing it would exhaust the processor's stack."""
    (folder / "config.pkl").write_bytes(b"\x80\x04}(" + b")" + b"\x85" * 3 * 10**5 + b"Nu.")


def deep_value(folder: Path) -> None:
    """Write a value so deep that printing it would exhaust the processor's stack."""
    head = b"\x80\x04}(X\x06\0\0\0params}(X\x11\0\0\0binarization_type"
    (folder / "config.pkl").write_bytes(head + b"]" * 3 * 10**5 + b"a" * (3 * 10**5 - 1) + b"uu.")


def no_end(folder: Path) -> None:
    (folder / "config.pkl").write_bytes(b"\x80\x04(G" + bytes(8) + b"}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (huge_view, "encoder.weight is no plain tensor"),
        (huge_compressed_entry, "is compressed"),
        (sparse_tensor, "encoder.weight is no plain tensor"),
        (huge_memo, "LONG_BINPUT 2147483647"),
        (evil_config, "asks to run code"),
        (evil_log, "asks to run code"),
        (evil_module, "cannot be read as a state dict"),
        (huge_old_storage, "claims to hold more than its"),
        (deep_key, "a key of tuple"),
        (deep_value, r"binarization_type=.* where str is expected"),
        (no_end, "is not a pickled config"),
        (evil_weights, "cannot be read as a state dict"),
        (evil_old_weights, "cannot be read as a state dict"),
    ],
)
def test_pickles_that_would_do_harm(damage: Callable[[Path], None], message: str, tmp_path: Path):
    convert(CASES["saelens step at zero"].save(tmp_path), tmp_path / "cho", CHO)
    damage(tmp_path / "cho")
    with little_memory(), pytest.raises(CheckpointError, match=message):
        load_coder(tmp_path / "cho")
    assert not (tmp_path / "cho" / "marker").exists()


@pytest.mark.parametrize(
    "name", ["sparsify topk_binary", "sparsify continuous", "sparsify groupmax"]
)
def test_a_config_s_widths_allocate_nothing(name: str, tmp_path: Path):
    folder = CASES[name].save(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "num_latents": 2**30, "d_in": 2**20}))
    with little_memory(), pytest.raises(CheckpointError, match="where its config asks for"):
        load_coder(folder, host="sparsify")


def test_a_config_of_any_size_is_not_read(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    with (folder / "cfg.json").open("r+b") as file:
        file.truncate(2**40)  # a hole in the file takes no disk space
    with little_memory(), pytest.raises(CheckpointError, match="a config has at most"):
        load_coder(folder)


def test_a_deeply_nested_config_is_refused(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    (folder / "cfg.json").write_text("[" * 10**5)
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_coder(folder)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "a\\..\\out", "a\0b", ""])
def test_names_stay_within_their_folder(name: str, tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    with pytest.raises(CheckpointError, match="stays within its folder"):
        load_coder(folder.parent, name)
    # The name of a coder can also come from the notes in a file.
    config = json.loads((folder / "cfg.json").read_text())
    for other in ("a", "b"):
        notes = {"version": 1, "place": {"hookpoint": name}, "settings": {}}
        shutil.copytree(folder, tmp_path / "many" / other)
        (tmp_path / "many" / other / "cfg.json").write_text(
            json.dumps({**config, "sae_binary_ext": notes})
        )
    with pytest.raises(CheckpointError, match=r"stays within its folder|must hold text"):
        convert(tmp_path / "many", tmp_path / "x" / "out", SPARSIFY)


def test_a_newer_version_s_notes_and_fields_are_refused(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    notes = {"version": 2, "place": {}, "settings": {}}
    (folder / "cfg.json").write_text(json.dumps({**config, "sae_binary_ext": notes}))
    with pytest.raises(CheckpointError, match=r"notes of version 2.*Install the version"):
        load_coder(folder)
    (folder / "cfg.json").write_text(json.dumps({**config, "rotation": "hadamard"}))
    with pytest.raises(CheckpointError, match=r"unknown fields \['rotation'\]"):
        load_coder(folder)


@pytest.mark.parametrize("dtype", ["float63", "int64"])
def test_a_config_of_no_floating_dtype_is_refused(dtype: str, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "dtype": dtype}))
    with pytest.raises(CheckpointError, match=rf"dtype='{dtype}', and W_enc is torch.float32"):
        load_coder(folder)


def test_weights_of_two_formats_in_one_folder_are_refused(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    save_file({"W_enc": torch.zeros(2)}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="weights of several formats"):
        load_coder(folder)
