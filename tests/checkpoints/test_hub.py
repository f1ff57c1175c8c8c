"""huggingface_hub uploads coders to a Hub on loopback, and downloads them from it."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from packaging.version import Version
from sae_lens import SAE
from sparsify import SparseCoder

from sae_binary_ext.checkpoints import (
    CheckpointError,
    convert,
    describe,
    hub_converter,
    load_coder,
    push,
)
from sae_binary_ext.saelens import BinarySAE
from sae_binary_ext.sparsify import BinarySparseCoder
from tests.checkpoints.coders import CASES, CHO, HOOKPOINT, MODEL, OUTPUT_HOOK, QUIRKE, D
from tests.hub_server import Hub, go_offline

REPO = "me/coders"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths, as a repository would hold them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_equal_codes(one: Any, other: Any) -> None:
    x = torch.randn(50, D)
    assert type(one) is type(other)
    if isinstance(one, SAE):
        assert torch.equal(one.encode(x), other.encode(x))
    else:
        assert torch.equal(one.encode(x).top_acts, other.encode(x).top_acts)
        assert torch.equal(one.encode(x).top_indices, other.encode(x).top_indices)


def test_saelens_own_loader_reads_a_pushed_coder(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    push(folder, REPO)
    sae = SAE.from_pretrained(REPO, "saelens")
    assert_equal_codes(sae, SAE.load_from_disk(folder))
    assert sae.cfg.metadata.hook_name == OUTPUT_HOOK


def test_sparsify_own_loaders_read_pushed_coders(hub: Hub, tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    push(folder.parent, REPO)
    expected = SparseCoder.load_from_disk(folder)
    assert isinstance(expected, BinarySparseCoder)
    assert_equal_codes(SparseCoder.load_from_hub(REPO, HOOKPOINT), expected)
    assert_equal_codes(SparseCoder.load_many(REPO)[HOOKPOINT], expected)


@pytest.mark.parametrize("name", ["sparsify topk_binary", "sparsify continuous"])
def test_saelens_reads_sparsify_s_format_with_the_converter(name: str, hub: Hub, tmp_path: Path):
    folder = CASES[name].save(tmp_path)
    push(folder, REPO)
    sae: Any = SAE.from_pretrained(REPO, HOOKPOINT, converter=hub_converter)
    assert_equal_codes(sae, load_coder(folder, host="saelens"))
    # The run's config, which names the model, is not uploaded.
    assert sae.cfg.metadata.hook_name in (OUTPUT_HOOK, "blocks.3.mlp.hook_out")
    assert sae.cfg.dtype == "float32"


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
@pytest.mark.parametrize("form", ["saelens", "sparsify", QUIRKE, CHO])
def test_load_coder_takes_any_format_off_the_hub(form: str, host: Any, hub: Hub, tmp_path: Path):
    source = CASES["saelens step at zero"].save(tmp_path)
    folder = tmp_path / "repository" / HOOKPOINT
    convert(source, folder, form)
    hub.add(REPO, contents(folder.parent))
    assert_equal_codes(load_coder(REPO, HOOKPOINT, host), load_coder(folder, host=host))
    assert_equal_codes(load_coder(REPO, host=host), load_coder(folder, host=host))


def test_only_the_coder_asked_for_is_downloaded(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    files = contents(folder)
    everything = {f"{name}/{file}": data for name in "ab" for file, data in files.items()}
    hub.add(REPO, {**everything, "a/trainer_state.pt": b"x", "a/activations.safetensors": b"x"})
    assert isinstance(load_coder(REPO, "a"), BinarySAE)
    fetched = {path for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert {path.rpartition("/a/")[2] for path in fetched} == set(files)
    with pytest.raises(CheckpointError, match=r"holds several coders.*\['a', 'b'\]"):
        load_coder(REPO)
    assert [one.name for one in describe(REPO)] == ["a", "b"]


def test_a_download_that_is_cut_off_is_resumed(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    hub.add(REPO, {f"a/{name}": data for name, data in contents(folder).items()})
    hub.cuts["GET sae_weights.safetensors"] = 1
    if Version(huggingface_hub.__version__).major < 1:
        # Old versions report the cut, and the next call resumes.
        with pytest.raises(CheckpointError, match="Connection broken"):
            load_coder(REPO, "a")
    assert_equal_codes(load_coder(REPO, "a"), load_coder(folder))
    assert hub.cuts == {"GET sae_weights.safetensors": 0}


def test_what_was_downloaded_serves_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = CASES["saelens topk"].save(tmp_path)
    hub.add(REPO, {f"a/{name}": data for name, data in contents(folder).items()})
    load_coder(REPO, "a")
    go_offline(monkeypatch)
    assert_equal_codes(load_coder(REPO, "a"), load_coder(folder))


def test_missing_files_and_repositories_are_named(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    files = {f"a/{name}": data for name, data in contents(folder).items()}
    hub.add(REPO, {name: data for name, data in files.items() if "cfg" not in name})
    with pytest.raises(CheckpointError, match=r"cfg\.json.*No such file"):
        load_coder(REPO, "a")
    hub.add("me/empty", {name: data for name, data in files.items() if "cfg" in name})
    with pytest.raises(CheckpointError, match="me/empty: holds no coder"):
        load_coder("me/empty", "a")
    with pytest.raises(CheckpointError, match=r"holds no coder 'b' but \['a'\]"):
        load_coder(REPO, "b")
    with pytest.raises(CheckpointError, match="me/nowhere: is no folder, and cannot be downloaded"):
        load_coder("me/nowhere", "a")
    with pytest.raises(CheckpointError, match="is neither a folder nor a repository's id"):
        load_coder("nowhere")


def test_an_upload_that_is_cut_off_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # huggingface_hub sleeps before its own retries, which would hide the cut.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    run = tmp_path / "run"
    for name in ("layers.1", "layers.2"):
        coder = CASES["sparsify topk_binary"].make()
        coder.save_to_disk(run / name)
    hub.cuts["PUT /objects/"] = 1
    hub.cuts["POST /commit/"] = 1
    with pytest.raises(CheckpointError, match="run the same again to go on"):
        push(run, REPO)
    assert hub.repositories[REPO].files == {}
    sent = hub.count("PUT", "/objects/")
    push(run, REPO)
    # Both weights files had arrived before the error, so only the commit was missing.
    assert hub.count("PUT", "/objects/") == sent
    assert sorted(SparseCoder.load_many(REPO)) == ["layers.1", "layers.2"]


def test_nothing_but_the_coder_and_its_cards_is_uploaded(hub: Hub, tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    for name in ("optimizer_0.pt", "state.pt", "wandb.log", ".env"):
        (folder / name).write_bytes(b"private")
    (folder.parent / "state.pt").write_bytes(b"private")
    planned = push(folder.parent, REPO, dry_run=True)
    assert hub.requests == []
    names = {"README.md", *(f"{HOOKPOINT}/{file}" for file in ("README.md", "cfg.json"))}
    assert set(planned.files) == names | {f"{HOOKPOINT}/sae.safetensors"}
    uploaded = push(folder.parent, REPO, private=True)
    assert uploaded == planned
    assert {name: len(data) for name, data in hub.repositories[REPO].files.items()} == planned.files
    assert hub.repositories[REPO].large == {f"{HOOKPOINT}/sae.safetensors"}
    assert hub.repositories[REPO].private


def test_a_second_push_keeps_the_first_s_coders_on_the_card(hub: Hub, tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    push(folder, REPO, licence="mit")
    push(folder.rename(tmp_path / "second"), REPO, licence="apache-2.0")
    card = ModelCard.load(REPO)
    assert "[saelens](saelens/README.md)\n- [second](second/README.md)" in card.content
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == MODEL
    assert {"sae_binary_ext", "sparse-autoencoder"} <= set(card.data.tags)
    root = Path(snapshot_download(REPO))
    assert (root / "saelens" / "cfg.json").is_file()
    assert (root / "second" / "cfg.json").is_file()


@pytest.mark.parametrize("name", [f"{HOOKPOINT}/seed0", f"best/{HOOKPOINT}"])
def test_a_run_s_config_comes_with_a_coder_from_any_depth(name: str, hub: Hub, tmp_path: Path):
    folder = CASES["sparsify continuous"].save(tmp_path / "source")
    config = json.loads((folder / "cfg.json").read_text())
    # Before February 2025, only the run's config said that its coders are transcoders.
    old = {key: config[key] for key in ("num_latents", "expansion_factor", "k", "d_in")}
    (folder / "cfg.json").write_text(json.dumps(old))
    files = {f"{name}/{path}": data for path, data in contents(folder).items()}
    run = {"model": MODEL, "transcode": True, "ctx_len": 64}
    hub.add(REPO, {**files, "config.json": json.dumps(run).encode()})
    metadata = load_coder(REPO, name).cfg.metadata
    assert (metadata.hook_name_out, metadata.model_name) == (OUTPUT_HOOK, MODEL)
    assert metadata.context_size == 64
    (described,) = describe(REPO)
    assert described.architecture == "TopK transcoder"
    with pytest.raises(CheckpointError, match=r"no coder 'layers.1' but"):
        load_coder(REPO, "layers.1")


def test_a_stranger_s_weights_in_a_repository_do_not_hide_its_coders(hub: Hub, tmp_path: Path):
    folder = CASES["sparsify continuous"].save(tmp_path / "source")
    hub.add(REPO, {"model.pt": b"of a language model", **contents(folder.parent)})
    assert [each.name for each in describe(REPO)] == [HOOKPOINT]
    with pytest.raises(CheckpointError, match=r"no coder 'layers.1' but"):
        load_coder(REPO, "layers.1")
