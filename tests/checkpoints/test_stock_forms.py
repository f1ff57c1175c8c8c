"""Stock forms of binary coders: what is written, what is refused, and that it needs no plugin."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder, push
from sae_binary_ext.checkpoints.portable import PortableCoder
from sae_binary_ext.checkpoints.saelens import from_coder
from sae_binary_ext.checkpoints.stock_forms import gate_biases, to_stock
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from tests.checkpoints.coders import CASES, MODEL, D, saelens_coder
from tests.fresh import run_fresh
from tests.hub_server import Hub

THRESHOLD: dict[str, Any] = {"selection": "threshold"}
EXACT = {
    "centred": {},
    "uncentred": {"apply_b_dec_to_input": False},
    "layer_norm": {"normalize_activations": "layer_norm"},
    "constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "hook_z": {"reshape_activations": "hook_z"},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}


def save_threshold_coder(folder: Path, **fields: Any) -> Any:
    coder = saelens_coder(BinarySAE, BinarySAEConfig, **THRESHOLD, **fields)
    # About half of the codes are 1, and the step at zero is among the thresholds.
    coder.b_enc.data.normal_(-0.5)
    coder.log_threshold.data[0] = -torch.inf
    coder.save_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("fields", EXACT.values(), ids=EXACT)
def test_a_threshold_coder_keeps_every_code_and_output(fields: dict[str, Any], tmp_path: Path):
    coder = save_threshold_coder(tmp_path / "own", **fields)
    assert convert(tmp_path / "own", tmp_path / "out", "stock") == [tmp_path / "out"]
    stock = SAE.load_from_disk(tmp_path / "out")
    assert type(stock).__module__.startswith("sae_lens.")
    x = torch.randn(5000, *((3, D // 3) if coder.hook_z_reshaping_mode else (D,)))
    codes = coder.encode(x)
    assert 0.1 < codes.mean() < 0.9
    assert torch.equal(stock.encode(x), codes)
    torch.testing.assert_close(stock(x), coder(x))
    assert stock.cfg.metadata.hook_name == coder.cfg.metadata.hook_name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gate_biases_are_exact_where_rounding_decides(dtype: torch.dtype):
    latents = 3000
    bias = torch.randn(latents).to(dtype) * torch.logspace(-3, 3, latents).to(dtype)
    log_threshold = torch.randn(latents).to(dtype).to(torch.promote_types(dtype, torch.float32))
    shape = from_coder(BinarySAE(BinarySAEConfig(d_in=1, d_sae=latents, **THRESHOLD))).shape
    weight = torch.zeros(latents, 1, dtype=dtype)
    tensors = {"encoder_weight": weight, "encoder_bias": bias, "log_threshold": log_threshold,
               "decoder_weight": weight, "decoder_bias": weight[0]}  # fmt: skip
    gate = gate_biases(PortableCoder(shape, tensors))
    naive = (log_threshold.exp() - bias).to(dtype)
    differs = 0
    # Products around the step: a few representable numbers on both sides of it.
    for offset in range(-6, 7):
        product = naive * (1 + offset * torch.finfo(dtype).eps)
        fires = (product + bias).to(log_threshold.dtype) > log_threshold.exp()
        assert torch.equal(product + gate > 0, fires)
        differs += int(((product - naive > 0) != fires).sum())
    assert differs, "thresholds minus biases would do as well: the products test nothing"


@pytest.mark.integration
def test_the_stock_form_loads_where_the_package_is_not_installed(tmp_path: Path):
    coder = save_threshold_coder(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "out", "stock")
    x = torch.randn(100, D)
    torch.save((x, coder.encode(x), coder(x)), tmp_path / "expected.pt")
    code = """
import sys
sys.modules["sae_binary_ext"] = None  # makes importing it an error
import torch
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1] + "/out")
x, codes, output = torch.load(sys.argv[1] + "/expected.pt")
assert torch.equal(sae.encode(x), codes)
torch.testing.assert_close(sae(x), output)
"""
    outcome = run_fresh(code, str(tmp_path))
    assert outcome.exit_code == 0, outcome.stderr


def test_folding_norms_changes_the_values_and_not_the_output(tmp_path: Path):
    save_threshold_coder(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "out", "stock")
    plain = SAE.load_from_disk(tmp_path / "out")
    folded = SAE.load_from_disk(tmp_path / "out", fold_W_dec_norm=True)
    x = torch.randn(1000, D)
    assert torch.equal(folded.encode(x) > 0, plain.encode(x) > 0)
    torch.testing.assert_close(folded(x), plain(x))


@pytest.mark.parametrize("fields", [{}, {"skip_connection": True, "d_out": 5}], ids=["", "skip"])
def test_a_transcoder_becomes_a_jumprelu_transcoder(fields: dict[str, Any], tmp_path: Path):
    coder = saelens_coder(BinaryTranscoder, BinaryTranscoderConfig, **THRESHOLD, **fields)
    coder.b_enc.data.normal_(-0.5)
    to_stock(from_coder(coder), "jumprelu", 2.0**-10).save_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    assert type(stock).__module__ == "sae_lens.saes.transcoder"
    x = torch.randn(2000, D)
    same = ((stock.encode(x) > 0) == (coder.encode(x) > 0)).all(1)
    assert same.float().mean() > 0.98
    torch.testing.assert_close(stock(x)[same], coder(x)[same], rtol=0.01, atol=0.05)
    assert stock.cfg.metadata.hook_name_out == coder.cfg.metadata.hook_name_out


def test_topk_keeps_the_selection(tmp_path: Path):
    coder = CASES["saelens topk"].make()
    to_stock(from_coder(coder), "topk").save_model(tmp_path)
    stock, x = SAE.load_from_disk(tmp_path), torch.randn(2000, D)
    differing = ((stock.encode(x) > 0) != (coder.encode(x) > 0)).sum()
    assert differing <= 1e-3 * coder.encode(x).sum()


REFUSED = {
    "saelens continuous": (None, "host='saelens'"),
    "sparsify skip autoencoder": (None, "no autoencoder with a skip connection"),
    "saelens topk": (None, "export_stock"),
    "saelens refined": ("topk", "refine_passes=12"),
    "saelens groupmax": ("topk", "nearest is architecture='gated'"),
    "saelens transcoder": ("gated", "nearest is architecture='jumprelu'"),
    "saelens threshold": ("relu", "gated, jumprelu, topk"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stock_files_cannot_hold_is_refused(case: str, tmp_path: Path):
    architecture, remedy = REFUSED[case]
    folder = CASES[case].save(tmp_path)
    with pytest.raises(CheckpointError, match=remedy):
        convert(folder, tmp_path / "out", "stock", architecture=architecture)
    assert not (tmp_path / "out").exists()


def test_a_stock_coder_and_another_host_s_architecture_are_refused(tmp_path: Path):
    save_threshold_coder(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "out", "stock")
    with pytest.raises(CheckpointError, match="is stock already"):
        convert(tmp_path / "out", tmp_path / "again", "stock")
    with pytest.raises(CheckpointError, match="only host='stock' takes it"):
        convert(tmp_path / "own", tmp_path / "again", "sparsify", architecture="gated")


def test_push_publishes_both_forms(hub: Hub, tmp_path: Path):
    own = save_threshold_coder(tmp_path / "coder")
    upload = push(tmp_path / "coder", "me/coders", host="stock", model=MODEL)
    assert {"coder/cfg.json", "coder/stock/cfg.json"} <= upload.files.keys()
    blocks = upload.cards["coder/README.md"].split("```python\n")[1:]
    assert len(blocks) == 3
    x = torch.randn(100, D)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.split("```")[0], names)
    assert names["sae"].cfg.architecture() == "gated"
    assert torch.equal(names["sae"].encode(x), own.encode(x))
    assert "gated: the same codes and outputs" in upload.cards["coder/README.md"]
    # The stock form is no second coder, unless one asks for it.
    assert load_coder("me/coders").cfg.architecture() == "binary"
    assert load_coder("me/coders", "coder/stock").cfg.architecture() == "gated"
    assert [one.name for one in describe("me/coders")] == ["coder", "coder/stock"]
    again = push(tmp_path / "coder", "me/coders", host="stock", model=MODEL)
    assert "coder/stock/README" not in again.cards["README.md"]


def test_push_takes_a_stock_form_that_was_made_before(hub: Hub, tmp_path: Path):
    coder = CASES["saelens topk"].make()
    coder.cfg.metadata.model_name = str(tmp_path)
    coder.save_model(tmp_path / "coder")
    with pytest.raises(CheckpointError, match="convert --host stock"):
        push(tmp_path / "coder", "me/coders", host="stock", model=MODEL)
    to_stock(from_coder(coder), "topk").save_model(tmp_path / "coder" / "stock")
    push(tmp_path / "coder", "me/coders", host="stock", model=MODEL)
    config = json.loads(hub.repositories["me/coders"].files["coder/stock/cfg.json"])
    assert config["architecture"] == "topk"
    assert config["metadata"]["model_name"] == MODEL
