"""`sae-binary compress` writes hidden states to files of codes and reads them back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS, RunningVectors
from sae_binary_ext.commands.compress.code_file import CodeFileError, read_header
from sae_binary_ext.commands.compress.compress_run import check_compressible, decompress
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import open_coders, read_text
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from sae_binary_ext.settings import ReadingConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, LATENTS, WIDTH, save_coders

pytestmark = pytest.mark.integration
TOKENS = 1000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("coders")
    save_coders(folder, tiny_model_folder)
    # Only the binary coders, one from each host.
    return [str(folder / "binary"), str(folder / "run" / "binary")]


@pytest.fixture(scope="module")
def output(
    folders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("out")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset), "--hook", HOOK]
    arguments += ["--tokens", str(TOKENS), "--context_size", str(CONTEXT)]
    assert main(["compress", *folders, *arguments, "--output", str(folder)]) == 0
    return folder


def test_what_comes_back_is_what_the_coders_make_of_the_text(
    folders: list[str], output: Path, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    config = ReadingConfig(
        str(tiny_model_folder), str(tiny_dataset), HOOK, tokens=TOKENS, context_size=CONTEXT
    )
    opened = open_coders(folders, config, tmp_path)
    (hooks,) = opened.hooks.values()
    inputs = torch.cat([batch.activations(hooks)[0] for batch in read_text(opened, config)])
    results = json.loads((output / "compress.json").read_text())["results"]
    for candidate, found in zip(opened.candidates, results["coders"], strict=True):
        path = output / found["file"]
        back = torch.cat(list(decompress(path, candidate.coder)))
        expected = candidate.coder.decode(candidate.coder.encode(inputs))
        torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-6)
        metrics = measure(candidate.coder, inputs)
        assert found["fvu"]["value"] == pytest.approx(metrics.fvu, rel=1e-4)
        assert found["vectors"] == len(inputs)
        smallest = min(found["bits"].values())
        assert path.stat().st_size * 8 / len(inputs) == smallest
        assert found["bits"]["packed"] > LATENTS
        assert read_header(path).about["hook_name"] == HOOK
    (vectors,) = results["vectors"].values()
    assert vectors["bits"]["float16"] == 16 * WIDTH
    running = RunningVectors()
    running.add(inputs)
    variance = (inputs - inputs.mean(0)).double().square().sum().item()
    assert vectors["fvu"] == pytest.approx(running.figures(variance).fvu, rel=1e-3)
    page = (output / "compress.html").read_text()
    for found in results["coders"]:
        assert f"{found['bits']['packed'] / (16 * WIDTH):.1%}" in page


def test_what_is_nearly_always_active_is_the_mean_that_codes_differ_from(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    coder = BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, selection="threshold"))
    with torch.no_grad():
        coder.b_enc[: LATENTS // 2] = 100
        coder.b_enc[LATENTS // 2 :] = -100
    coder.save_model(tmp_path / "coder")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset), "--hook", HOOK]
    arguments += ["--tokens", str(TOKENS), "--output", str(tmp_path)]
    assert main(["compress", str(tmp_path / "coder"), *arguments]) == 0
    (found,) = json.loads((tmp_path / "compress.json").read_text())["results"]["coders"]
    # No code differs from the mean, so the file holds a header and an empty list for each vector.
    assert found["bits"]["difference"] < found["bits"]["sparse"] / 2


def test_codes_that_do_not_come_back_are_noticed(
    folders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    sparse = ENCODINGS["sparse"]
    forgetful = replace(sparse, write=lambda packed, latents: sparse.write(packed * 0, latents))
    monkeypatch.setitem(ENCODINGS, "sparse", forgetful)
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset), "--hook", HOOK]
    with pytest.raises(SystemExit):
        main(["compress", folders[0], *arguments, "--tokens", "200", "--output", str(tmp_path)])
    assert "block 0 is not what was written" in capsys.readouterr().err


def test_only_the_smallest_file_of_a_coder_stays(output: Path):
    assert len(list(output.glob("*.codes"))) == 2
    assert not list(output.glob("*.unfinished"))
    assert (output / "compress.html").is_file()


def test_a_file_of_another_coder_is_refused(folders: list[str], output: Path):
    results = json.loads((output / "compress.json").read_text())["results"]["coders"]
    other = load_coder(folders[1])
    with pytest.raises(CodeFileError, match="was written with a coder of fingerprint"):
        next(decompress(output / results[0]["file"], other))


def test_stock_coders_are_refused_before_anything_is_read(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = save_coders(tmp_path, tiny_model_folder)
    arguments = ["--model", str(tiny_model_folder), "--hook", HOOK, "--output", str(tmp_path / "o")]
    with pytest.raises(SystemExit):
        main(["compress", *folders, *arguments])
    assert "stock: its codes have values" in capsys.readouterr().err


SIZES: dict[str, Any] = {"d_in": 4, "d_sae": 8, "k": 2}
COMPRESSIBLE: dict[str, tuple[SAE[Any], str | None]] = {
    "autoencoder": (BinarySAE(BinarySAEConfig(**SIZES)), None),
    "transcoder": (BinaryTranscoder(BinaryTranscoderConfig(**SIZES)), None),
    "layer norm": (
        BinarySAE(BinarySAEConfig(**SIZES, normalize_activations="layer_norm")),
        "own mean and",
    ),
    "skip": (
        BinaryTranscoder(BinaryTranscoderConfig(**SIZES, skip_connection=True)),
        "its skip connection",
    ),
}


@pytest.mark.parametrize("case", COMPRESSIBLE)
def test_coders_whose_output_is_not_of_their_codes_alone_are_refused(case: str):
    coder, message = COMPRESSIBLE[case]
    if message is None:
        check_compressible(case, coder)
    else:
        with pytest.raises(ValueError, match=f"{case}: .*{message}"):
            check_compressible(case, coder)
