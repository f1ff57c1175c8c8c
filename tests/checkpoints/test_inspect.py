"""`inspect` of folders and repositories: what it shows, what it checks and what it downloads."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_binary_ext.checkpoints import CheckpointError, describe, load_coder
from sae_binary_ext.cli import main
from tests.checkpoints.coders import CASES
from tests.hub_server import Hub, go_offline

D, D_OUT, LATENTS = 6, 4, 24
PLACE = {"model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre"}
WIDE = {"d_out": D_OUT, "apply_b_dec_to_input": False}
# For each architecture of SAELens: its own config fields, and words that `inspect` shows.
STOCK: dict[str, tuple[dict[str, Any], str]] = {
    "standard": ({}, "every positive pre-activation (ReLU)"),
    "gated": ({}, "gated by another's"),
    "jumprelu": ({"dtype": "bfloat16"}, "above a threshold of each latent"),
    "abstopk": ({"k": 3}, "in absolute value"),
    "transcoder": (WIDE, "every positive pre-activation (ReLU)"),
    "skip_transcoder": (WIDE, "every positive pre-activation (ReLU)"),
    "jumprelu_transcoder": (WIDE, "above a threshold of each latent"),
    "jumprelu_skip_transcoder": (WIDE, "above a threshold of each latent"),
    "matching_pursuit": ({}, "one after another from the residual"),
}


def stock(folder: Path, architecture: str, **fields: Any) -> Any:
    own, _ = STOCK[architecture]
    config = {"architecture": architecture, "d_in": D, "d_sae": LATENTS, **own, **fields}
    coder: Any = SAE.from_dict(config)
    for key, value in PLACE.items():
        coder.cfg.metadata[key] = value
    if "transcoder" in architecture:
        coder.cfg.metadata.hook_name_out = "blocks.8.hook_mlp_out"
    coder.save_model(folder)
    return coder


@pytest.mark.parametrize("architecture", STOCK)
def test_stock_coders_of_saelens_show_what_they_are(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stock(tmp_path / "coder", architecture)
    assert main(["inspect", str(tmp_path / "coder")]) == 0
    printed = capsys.readouterr().out
    fields, words = STOCK[architecture]
    d_out = fields.get("d_out", D)
    for expected in (
        f"{architecture}, of SAELens only", f"{D} -> {LATENTS} latents -> {d_out}", words,
        fields.get("dtype", "float32"), *PLACE.values(),
    ):  # fmt: skip
        assert expected in printed
    assert ("blocks.8.hook_mlp_out" in printed) == ("transcoder" in architecture)


def not_a_number(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


def longer(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor])


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "not finite": (
        lambda state: state.update(b_dec=not_a_number(state["b_dec"])), "b_dec holds values that"
    ),
    "another size": (
        lambda state: state.update(W_dec=longer(state["W_dec"])), r"W_dec is .* asks for"
    ),
    "missing": (lambda state: state.__delitem__("b_dec"), r"b_dec is missing where its"),
    "too many": (
        lambda state: state.update(other=state["b_dec"] * 1), r"other is .* asks for no such tensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("architecture", STOCK)
def test_their_weights_are_checked(architecture: str, damage: str, tmp_path: Path):
    stock(tmp_path, architecture)
    state = load_file(tmp_path / "sae_weights.safetensors")
    change, message = DAMAGES[damage]
    change(state)
    save_file(state, tmp_path / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match=message):
        describe(tmp_path)


def publish(hub: Hub, repository: str, folders: dict[str, Path]) -> int:
    """Upload folders under their names in a repository. Returns the size of all files in bytes."""
    files = {
        f"{name}/{file.name}": file.read_bytes()
        for name, folder in folders.items()
        for file in folder.iterdir()
    }
    hub.add(repository, files)
    return sum(map(len, files.values()))


def test_of_a_repository_configs_and_headers_are_read(hub: Hub, tmp_path: Path):
    folders = {f"layer_{layer}": tmp_path / str(layer) for layer in range(8)}
    for folder in folders.values():
        stock(folder, "standard", d_in=128, d_sae=2048)
    total = publish(hub, "me/many", folders)
    described = describe("me/many")
    assert [one.name for one in described] == sorted(folders)
    for one in described:
        lines = dict(one.lines())
        assert lines["sizes"] == "128 -> 2048 latents -> 128"
        assert lines["weights"] == "names, sizes and dtypes checked; values not downloaded"
    # huggingface_hub downloads the first 100 kB of a file, which contain the header.
    assert hub.served_bytes < 8 * 110_000 < total / 15
    describe("me/many", "layer_3")
    assert hub.served_bytes < 9 * 110_000


@pytest.mark.parametrize("name", [name for name in CASES if "step" not in name])
def test_a_repository_s_coders_are_described_as_a_folder_s(name: str, hub: Hub, tmp_path: Path):
    folder = CASES[name].save(tmp_path)
    publish(hub, "me/one", {folder.name: folder})
    (there,), (here,) = describe("me/one"), describe(folder)
    # The run's config was not uploaded, and firing rates are among values not downloaded.
    apart = {"weights", "recorded firing", "model"}

    def lines(one: Any) -> list[tuple[str, str]]:
        return [line for line in one.lines() if line[0] not in apart]

    assert lines(there) == lines(here)
    assert dict(there.lines())["weights"].endswith("not downloaded")
    assert "weights" not in dict(here.lines())


def test_a_wrong_header_is_found_without_the_values(hub: Hub, tmp_path: Path):
    stock(tmp_path / "a", "standard")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    (tmp_path / "a" / "cfg.json").write_text(json.dumps({**config, "d_sae": LATENTS + 1}))
    publish(hub, "me/wrong", {"a": tmp_path / "a"})
    with pytest.raises(CheckpointError, match=r"W_\w+ is .* where its config asks for"):
        describe("me/wrong")


def test_without_a_network_there_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    for call in (load_coder, describe):
        with pytest.raises(CheckpointError, match="the Hub cannot be reached"):
            call("me/unheard-of")
    with pytest.raises(SystemExit):
        main(["inspect", "me/unheard-of"])
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no copy of it was downloaded before" in error


def test_what_was_downloaded_is_described_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = CASES["saelens topk"].save(tmp_path)
    publish(hub, "me/kept", {"a": folder})
    load_coder("me/kept", "a")
    go_offline(monkeypatch)
    (one,) = describe("me/kept")
    assert one.name == "a"
    assert "weights" not in dict(one.lines())
