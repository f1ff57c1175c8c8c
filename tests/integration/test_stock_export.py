"""`sae-binary convert --host stock` with text: thresholds fitted, and the difference measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from tests.integration.test_refit import save

pytestmark = pytest.mark.integration
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 64, "k": 8}


def autoencoder(**fields: Any) -> BinarySAE:
    return BinarySAE(BinarySAEConfig(**SIZES, **fields))


def transcoder(**fields: Any) -> BinaryTranscoder:
    return BinaryTranscoder(BinaryTranscoderConfig(**SIZES, **fields))


# Each coder, the options, the architecture that it gets, and whether thresholds are fitted.
CASES = {
    "topk": (autoencoder(), [], "topk", False),
    "gated": (autoencoder(), ["--architecture", "gated"], "gated", True),
    "groupmax": (autoencoder(selection="groupmax"), [], "gated", True),
    "jumprelu": (
        autoencoder(selection="threshold"), ["--architecture", "jumprelu"], "jumprelu", False
    ),
    "transcoder": (transcoder(selection="threshold"), [], "jumprelu_transcoder", False),
    "skip": (transcoder(skip_connection=True), [], "jumprelu_skip_transcoder", True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_stock_form_that_differs_is_measured(
    case: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    coder, asked, architecture, fitted = CASES[case]
    save(coder, tiny_model_folder, tmp_path / "own")
    text = ["--dataset", str(tiny_dataset), "--tokens", "2000", "--device", "cpu"]
    model = ["--model", str(tiny_model_folder)]
    out = tmp_path / "out"
    arguments = [str(tmp_path / "own"), str(out), "--host", "stock", *asked, *text, *model]
    assert main(["convert", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: ")
    assert "codes differ" in printed
    assert ("fitted to text" in printed) == fitted
    stock = SAE.load_from_disk(out)
    assert stock.cfg.architecture() == architecture
    assert type(stock).__module__.startswith("sae_lens.")
    told = json.loads((out / "cfg.json").read_text())["metadata"]["converted_from"]
    assert (told["selection"], told["k"]) == (coder.cfg.selection, 8)
    assert 800 <= told["tokens"] <= 1200
    own = load_coder(tmp_path / "own")
    x = torch.randn(500, 16)
    same = ((own.encode(x) > 0) == (stock.encode(x) > 0)).float().mean()
    if fitted:
        # A random coder's thresholds come with a decoder fitted to the new codes.
        assert told["fvu"][1] < told["fvu"][0]
        assert told["l0"][1] < 2 * told["l0"][0]
    else:
        assert told["fvu"][1] == pytest.approx(told["fvu"][0], rel=1e-2)
        assert told["differing"] < 1e-3 * told["firings"]
        assert same > 0.999
