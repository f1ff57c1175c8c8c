"""Coders that SAELens' list names, and coders of other libraries, by their names on the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import load, save

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder, releases
from sae_binary_ext.checkpoints.published import find_published
from sae_binary_ext.cli import main
from sae_binary_ext.measure import load_candidates
from tests import published_layouts as layouts
from tests.hub_server import Hub

D, LATENTS, K = 8, 32, 4
OWN = "gpt2-small-res-jb", "blocks.8.hook_resid_pre"
OWN_REPOSITORY = "jbloom/GPT2-Small-SAEs-Reformatted"
LLAMA, LLAMA_REPOSITORY = "llama_scope_lxr_8x", "fnlp/Llama3_1-8B-Base-LXR-8x"
LLAMA_PATH = "Llama3_1-8B-Base-L15R-8x"
TOPK = layouts.dictionary_learning("some/trainer_0", "AutoEncoderTopK", D, LATENTS, K)


def of_2024(**changes: Any) -> dict[str, bytes]:
    """A ReLU coder in SAELens' files of March 2024, which gpt2-small-res-jb has."""
    coder: Any = SAE.from_dict({"architecture": "standard", "d_in": D, "d_sae": LATENTS})
    for parameter in coder.parameters():
        parameter.data.normal_()
    config = {
        "d_in": D, "d_sae": LATENTS, "dtype": "torch.float32", "hook_point": OWN[1],
        "model_name": "gpt2-small", **changes,
    }  # fmt: skip
    text = json.dumps(config).encode()
    return layouts.saved(coder, OWN[1]) | {f"{OWN[1]}/cfg.json": text}


@pytest.fixture
def published(hub: Hub) -> Hub:
    """A Hub with a coder in SAELens' files, one of Llama Scope, and one of dictionary_learning."""
    hub.add(OWN_REPOSITORY, of_2024())
    hub.add(LLAMA_REPOSITORY, layouts.llama_scope(LLAMA_PATH, D, LATENTS, layouts.HOOK))
    hub.add("me/dictionaries", TOPK)
    return hub


def test_the_list_is_read_without_saelens():
    listed = get_pretrained_saes_directory()
    assert releases.release_names() == list(listed)
    assert all(releases.is_listed(release.repo_id) for release in listed.values())
    assert not releases.is_listed("jbloom/GPT2-Small")


# For each name of a coder: the arguments of SAE.from_pretrained that mean the same coder.
NAMES = {
    "/".join(OWN): OWN,
    f"{OWN_REPOSITORY}/{OWN[1]}": OWN,
    f"{LLAMA}/l15r_8x": (LLAMA, "l15r_8x"),
    # The list has the factor by which activations are scaled, and the files have not.
    f"{LLAMA_REPOSITORY}/{LLAMA_PATH}": (LLAMA, "l15r_8x"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_release_and_an_id_are_what_saelens_loads(name: str, published: Hub):
    coder, expected = load_coder(name), SAE.from_pretrained(*NAMES[name])
    assert coder.cfg.to_dict() == expected.cfg.to_dict()
    assert coder.cfg.normalize_activations == "none"
    for key, tensor in expected.state_dict().items():
        assert torch.equal(coder.state_dict()[key], tensor)
    (found,) = load_candidates([name])
    assert found.name == NAMES[name][1]
    assert str(found.folder) == "/".join(NAMES[name])


def test_a_release_s_own_settings_reach_the_model(published: Hub):
    (found,) = load_candidates(["/".join(OWN)])
    settings = found.coder.cfg.metadata.model_from_pretrained_kwargs
    assert settings == {"center_writing_weights": True}


def test_a_converter_is_found_by_the_files(published: Hub):
    coder = load_coder("me/dictionaries/some/trainer_0")
    assert (coder.cfg.architecture(), coder.cfg.k) == ("topk", K)
    assert load_coder("me/dictionaries", "some/trainer_0").cfg == coder.cfg
    x = torch.randn(20, D)
    in_sparsify = load_coder("me/dictionaries/some/trainer_0", host="sparsify")
    assert torch.allclose(in_sparsify(x).sae_out, coder(x), atol=1e-5)


def test_inspect_says_of_them_what_it_says_of_ours(
    published: Hub, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", "/".join(OWN)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "/".join(OWN), "standard, of SAELens only", f"{D} -> {LATENTS} latents -> {D}", "float32",
        "every positive pre-activation", "gpt2-small", OWN[1],
    ):  # fmt: skip
        assert expected in printed
    (topk,) = describe("me/dictionaries/some/trainer_0")
    lines = dict(topk.lines())
    assert lines["selection"] == f"topk, k={K}"
    assert lines["architecture"] == "TopK autoencoder"
    assert lines["hook (SAELens)"] == layouts.HOOK
    assert lines["model"] == "gemma-2-2b"


def test_their_weights_are_checked(published: Hub):
    files, weights = of_2024(), f"{OWN[1]}/sae_weights.safetensors"
    state = load(files[weights])
    state["b_dec"][3] = torch.nan
    published.add(OWN_REPOSITORY, {weights: save(state)})
    with pytest.raises(CheckpointError, match="b_dec holds values that are not finite"):
        describe("/".join(OWN))
    narrow = layouts.dictionary_learning("some/trainer_0", "AutoEncoderTopK", D, LATENTS + 1, K)
    published.add("me/dictionaries", {"some/trainer_0/ae.pt": narrow["some/trainer_0/ae.pt"]})
    with pytest.raises(CheckpointError, match="its host refuses it: RuntimeError"):
        describe("me/dictionaries/some/trainer_0")


def test_a_release_is_refused_if_saelens_would_compute_other_codes(published: Hub):
    published.add(OWN_REPOSITORY, of_2024(activation_fn_str="tanh-relu"))
    with pytest.raises(CheckpointError, match="silently compute other codes"):
        load_coder("/".join(OWN))


UNKNOWN = {
    "gpt2-small-res-jb": r"is a release of SAELens with \d+ coders.*The nearest ids are ",
    "gpt2-small-res-jb/blocks.8.hook_resid_pr": r"no coder 'blocks.8.hook_resid_pr'\. The nearest "
    r"ids are blocks\.8\.hook_resid_pre",
    "gpt2-small-res-jbb": r"neither a folder nor a repository's id .*gpt2-small-res-jb",
    "gpt2-small-res-jbb/blocks.8.hook_resid_pre": r"cannot be downloaded \(SAELens has releases of "
    r"similar names: gpt2-small-res-jb",
    "me/dictionaries/some/trainer_1": r"no coder 'some/trainer_1'\. The nearest are some/trainer_0",
    "me/dictionaries": r"Here too, name it RELEASE/ID, or USER/REPOSITORY and its path there",
    "me/nowhere/layers.9": "is no folder, and cannot be downloaded: RepositoryNotFound",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_told_the_nearest(name: str, published: Hub):
    for call in (load_coder, describe):
        with pytest.raises(CheckpointError, match=UNKNOWN[name]):
            call(name)
    with pytest.raises(CheckpointError, match=UNKNOWN[name]):
        load_candidates([name])


def test_of_many_coders_the_nearest_are_told(hub: Hub):
    files = {path.rpartition("/")[2]: data for path, data in of_2024().items()}
    many = {f"layer_{n}/{name}": data for n in range(30) for name, data in files.items()}
    hub.add("me/many", many)
    with pytest.raises(CheckpointError, match=r"holds no coder 'layer_9x' but layer_9, layer_29"):
        load_coder("me/many/layer_9x")


def test_a_folder_comes_before_a_release_and_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / Path(*OWN)
    folder.mkdir(parents=True)
    for path, data in of_2024().items():
        (folder / Path(path).name).write_bytes(data)
    assert find_published("/".join(OWN)) is None
    assert load_coder("/".join(OWN)).cfg.metadata.model_from_pretrained_kwargs is None
    assert hub.requests == []


def test_commands_on_files_say_how_to_get_one(published: Hub, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"is a release of SAELens\. Write its coder"):
        convert("/".join(OWN), tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()
