from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from sparsify import SparseCoder

from sae_binary_ext.cli import main
from sae_binary_ext.sparsify import BinarySparseCoder
from tests.checkpoints.coders import CASES, HOOKPOINT, MODEL, OUTPUT_HOOK
from tests.hub_server import Hub


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    assert main(["convert", str(folder), str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a")
    sae = SAE.load_from_disk(tmp_path / "a")
    assert sae.cfg.metadata.hook_name == OUTPUT_HOOK
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--host", "sparsify"]) == 0
    back = SparseCoder.load_from_disk(tmp_path / "b")
    assert isinstance(back, BinarySparseCoder)
    assert torch.equal(back.encoder.weight, sae.W_enc.T)


def test_convert_one_of_several(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    folder.rename(folder.with_name("layers.5"))
    CASES["sparsify topk_binary"].save(tmp_path)
    run, out = str(folder.parent), tmp_path / "a"
    assert main(["convert", run, str(out), "--hookpoint", "layers.5"]) == 0
    assert SAE.load_from_disk(out).cfg.metadata.hook_name == "blocks.5.hook_resid_post"


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = CASES["sparsify skip transcoder"].save(tmp_path)
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    for words in (
        HOOKPOINT, "binary transcoder with skip connection", "12 -> 48 latents -> 12", "topk, k=6",
        MODEL, "sparsify", "float32", "recorded firing",
    ):  # fmt: skip
        assert words in printed


def test_push(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    dry = ["push", str(folder), "me/coders", "--licence", "mit", "--dry-run"]
    assert main(dry) == 0
    printed = capsys.readouterr().out
    assert f"me/coders/{HOOKPOINT}/sae.safetensors" in printed
    assert "## How to load" in printed
    assert hub.repositories == {}
    assert main(dry[:-1]) == 0
    assert f"{HOOKPOINT}/sae.safetensors" in hub.repositories["me/coders"].files
    assert "## How to load" not in capsys.readouterr().out
    assert main(["inspect", "me/coders"]) == 0
    assert HOOKPOINT in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["convert", "nowhere", "out"], ["inspect", "nowhere"], ["push", "nowhere", "me/coders"]],
)
def test_mistakes_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"sae-binary {arguments[0]}: nowhere")
    assert printed.count("\n") == 1
