"""The files and model cards that push prepares. test_hub.py uploads them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder, push
from tests.checkpoints.coders import CASES, CHO, HOOKPOINT, LATENTS, MODEL, QUIRKE, D
from tests.hub_server import Hub

REPO = "me/coders"
TEXT = "Wikipedia sample of gensim"


def card_of(folder: Path, **facts: Any) -> str:
    upload = push(folder, REPO, dry_run=True, **facts)
    return next(text for name, text in upload.cards.items() if name != "README.md")


def write_figures(folder: Path, **changes: Any) -> None:
    """Write metrics.json as the demo does."""
    values = {
        "latents": LATENTS,
        "fvu": 0.28,
        "recovered_of_zero_ablation": 0.9,
        "l0": 26.6,
        "dead": 3,
        "dense": 2,
        "ultra_high_frequency": 1,
        "entropy_bits": 146.4,
    } | changes
    figures = {key: {"value": value} for key, value in values.items()}
    coder = {"name": "binary", "tokens": 30600} | figures
    document = {"run": {"dataset": TEXT}, "coders": [coder]}
    (folder / "metrics.json").write_text(json.dumps(document))


def test_the_card_says_what_was_measured_and_how_to_load_it(tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    write_figures(folder)
    card = card_of(folder, licence="mit", training_tokens="299,880", dataset="user/text")
    for row in (
        f"| model | {MODEL} |",
        "| hook (SAELens) | blocks.3.hook_mlp_out |",
        f"| sizes | {D} -> {LATENTS} latents -> {D} |",
        "| training tokens | 299,880 |",
        "| trained on | user/text |",
        "On 30,600 tokens of Wikipedia sample of gensim:",
        "| FVU | 0.2800 |",
        "| L0, mean active latents a token | 26.6 |",
        "| dead latents | 3 |",
        "| latents active on more than 10% of tokens | 2 |",
        "| entropy of the firing rates, bits a token | 146 |",
        "| share of cross-entropy recovered | 90.0% |",
        "Its latents are exactly 0 or 1.",
        "## Licence\n\nmit",
    ):
        assert row in card
    assert 'SAE.from_pretrained("me/coders", "saelens")' in card


def test_a_local_text_s_path_and_figures_that_could_not_be_computed_are_left_out(tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    write_figures(folder, recovered_of_zero_ablation=None)
    path = folder / "metrics.json"
    document = json.loads(path.read_text()) | {"run": {"dataset": str(tmp_path)}}
    path.write_text(json.dumps(document))
    card = card_of(folder)
    assert "On 30,600 tokens of a local text:" in card
    assert "| FVU | 0.2800 |" in card
    assert "cross-entropy" not in card


def test_nothing_is_said_that_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    card = card_of(CASES["sparsify continuous"].save(tmp_path))
    assert "Nothing was measured." in card
    assert "## Licence\n\nNot stated." in card
    assert "training tokens" not in card
    assert "exactly 0 or 1" not in card
    assert "no metrics.json beside it" in caplog.text


@pytest.mark.parametrize("form", ["saelens", "sparsify", QUIRKE, CHO])
def test_the_card_s_code_loads_the_coder(form: str, hub: Hub, tmp_path: Path):
    source = CASES["saelens step at zero"].save(tmp_path)
    convert(source, tmp_path / "out" / HOOKPOINT, form)
    upload = push(tmp_path / "out" / HOOKPOINT, REPO, model=MODEL)
    blocks = re.findall(r"```python\n(.*?)```", upload.cards[f"{HOOKPOINT}/README.md"], re.DOTALL)
    assert len(blocks) == (1 if form == CHO else 2)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        coder = names.get("coder", names.get("sae"))
        assert coder.b_dec.shape == (D,)


def test_runs_notes_are_read(tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    notes = {"training_tokens": 4096, "dataset_path": "user/text", "model_name": MODEL}
    (folder / "runner_cfg.json").write_text(json.dumps(notes))
    card = card_of(folder)
    assert "| training tokens | 4096 |" in card
    assert "| trained on | user/text |" in card


def test_a_folder_of_this_machine_is_no_model(tmp_path: Path):
    coder = CASES["saelens topk"].make()
    coder.cfg.metadata.model_name = str(tmp_path)
    coder.save_model(tmp_path / "coder")
    with pytest.raises(CheckpointError, match=r"is a folder of this machine.*model='user/name'"):
        push(tmp_path / "coder", REPO, dry_run=True)


def test_names_of_this_machine_are_published_as_the_hub_s(hub: Hub, tmp_path: Path):
    coder = CASES["saelens topk"].make()
    coder.cfg.metadata.model_name = str(tmp_path)
    coder.cfg.metadata.dataset_path = str(tmp_path / "text")
    coder.save_model(tmp_path / "coder")
    with pytest.raises(CheckpointError, match="dataset="):
        push(tmp_path / "coder", REPO, model=MODEL)
    push(tmp_path / "coder", REPO, model=MODEL, dataset="user/text")
    config = json.loads(hub.repositories[REPO].files["coder/cfg.json"])
    assert config["metadata"]["model_name"] == MODEL
    assert config["metadata"]["dataset_path"] == "user/text"
    assert str(tmp_path) not in str(hub.repositories[REPO].files)
    (description,) = describe(REPO)
    assert description.coder is not None
    # describe reads only headers of a repository, so the values are loaded here.
    assert torch.equal(load_coder(REPO).b_dec, coder.b_dec)


def test_damaged_coders_and_figures_are_not_published(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    (folder / "metrics.json").write_text('{"coders": [{"fvu": "low"}], "run": {}}')
    with pytest.raises(CheckpointError, match="holds no figures of one coder"):
        push(folder, REPO)
    (folder / "metrics.json").unlink()
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        push(folder, REPO)
    assert hub.repositories == {}


@pytest.mark.parametrize("repo_id", ["coders/", "a/b/c", "a b/c", "..", "me/-"])
def test_repository_ids_are_checked(repo_id: str, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    with pytest.raises(CheckpointError, match="repo_id="):
        push(folder, repo_id, dry_run=True)


def test_coders_of_one_host_are_published_for_it(tmp_path: Path):
    coder = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=LATENTS))
    coder.save_model(tmp_path / "jumprelu")
    card = card_of(tmp_path / "jumprelu", model=MODEL)
    assert 'host="saelens"' in card
    assert 'host="sparsify"' not in card


def test_the_repository_s_card_has_the_hub_s_metadata(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    upload = push(folder, REPO, licence="apache-2.0", dry_run=True)
    data = ModelCard(upload.cards["README.md"]).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", MODEL, "sparsify")
