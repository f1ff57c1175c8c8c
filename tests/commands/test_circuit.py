"""`sae-binary circuit` writes graphs that circuit-tracer's page takes (`make test-circuits`)."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

from sae_binary_ext.cli import main
from tests.layer_coders import LAYERS, layer_coder

PROMPT = "w2 w3 w4 w5 w6 w7"


def test_a_missing_circuit_tracer_is_named(capsys: pytest.CaptureFixture[str]):
    if find_spec("circuit_tracer") is not None:
        pytest.skip("circuit-tracer is installed")
    with pytest.raises(SystemExit):
        main(["circuit", "coders", PROMPT])
    assert "pip install 'sae_binary_ext[circuits]'" in capsys.readouterr().err


@pytest.fixture
def coders(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder of binary transcoders of all layers, which name the model's folder."""
    for layer in range(LAYERS):
        coder = layer_coder("topk", layer)
        coder.cfg.metadata.model_name = str(tiny_llama)
        coder.save_model(tmp_path / "coders" / f"layers.{layer}.mlp")
    return tmp_path / "coders"


def test_help_says_what_is_needed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["circuit", "--help"])
    assert "sae_binary_ext[circuits]" in capsys.readouterr().out


def test_graph_files_are_those_of_the_page(
    coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("circuit_tracer")
    from circuit_tracer.frontend.graph_models import Model
    from circuit_tracer.frontend.local_server import serve

    out = tmp_path / "graphs"
    assert main(["circuit", str(coders), PROMPT, "--output", str(out), "--name", "six words"]) == 0
    printed = capsys.readouterr().out
    graph = Model.model_validate_json((out / "six-words.json").read_text())
    assert graph.metadata.prompt_tokens == ["<s>", *PROMPT.split()]
    latents = [node for node in graph.nodes if node.feature_type == "cross layer transcoder"]
    assert f"{len(latents)} latents, {len(graph.links)} edges" in printed
    assert {node.activation for node in latents} == {1.0}
    ids = {node.node_id for node in graph.nodes}
    assert all(link["source"] in ids and link["target"] in ids for link in graph.links)
    server = serve(out, port=0)
    try:
        address = f"http://localhost:{server.httpd.server_address[1]}"
        node = latents[0]
        path = f"{graph.metadata.scan.removeprefix('.')}/{node.feature}.json"
        with urlopen(address + path) as answer:
            told = json.load(answer)
    finally:
        server.stop()
    (example,) = told["examples_quantiles"][0]["examples"]
    assert example["tokens"] == graph.metadata.prompt_tokens
    assert example["tokens_acts_list"][node.ctx_idx] == 1.0


def test_a_missing_layer_and_an_unknown_model_are_named(
    coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("circuit_tracer")
    given = ["circuit", str(coders), PROMPT, "--output", str(tmp_path / "graphs")]
    with pytest.raises(SystemExit):
        main([*given, "--backend", "transformerlens"])
    assert "TransformerLens has no model" in capsys.readouterr().err
    last = coders / f"layers.{LAYERS - 1}.mlp"
    last.rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        main(given)
    told = rf"{LAYERS - 1} layers of width 16, and .* has {LAYERS} of width 16"
    assert re.search(told, capsys.readouterr().err)
