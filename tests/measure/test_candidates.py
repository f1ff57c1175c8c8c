from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.checkpoints import CheckpointError
from sae_binary_ext.measure.candidates import Candidate, Site, common_model, load_candidates
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

D_IN, D_OUT, LATENTS = 6, 4, 12
HOOK = "blocks.3.hook_resid_post"


def save(kind: str, folder: Path, **metadata: Any) -> str:
    """Save a coder in its host's format; returns the folder."""
    place = SAEMetadata(**metadata)
    if kind == "sparsify topk":
        SparseCoder(D_IN, SparseCoderConfig(num_latents=LATENTS, k=2)).save_to_disk(folder)
    elif kind == "sparsify binary":
        cfg = BinarySparseCoderConfig(num_latents=LATENTS, k=2)
        BinarySparseCoder(D_IN, cfg).save_to_disk(folder)
    else:
        sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": LATENTS, "metadata": place}
        coder: Any = {
            "binary": lambda: BinarySAE(BinarySAEConfig(**sizes, k=2)),
            "transcoder": lambda: BinaryTranscoder(
                BinaryTranscoderConfig(**sizes, d_out=D_OUT, k=2)
            ),
            "topk": lambda: TopKSAE(TopKSAEConfig(**sizes, k=2)),
            "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**sizes)),
        }[kind]()
        coder.save_model(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["binary", "topk", "jumprelu"])
def test_coders_of_saelens_know_their_hook(kind: str, tmp_path: Path):
    source = save(kind, tmp_path / "a", hook_name=HOOK)
    (found,) = load_candidates([source])
    assert (found.name, found.site, str(found.site)) == ("a", Site(HOOK, HOOK), HOOK)
    assert found.coder.cfg.architecture() == kind


@pytest.mark.parametrize("kind", ["sparsify topk", "sparsify binary"])
def test_coders_of_sparsify_are_named_by_their_folder(kind: str, tmp_path: Path):
    save(kind, tmp_path / "layers.3")
    save(kind, tmp_path / "layers.5")
    found = load_candidates([str(tmp_path)])
    assert [each.name for each in found] == ["layers.3", "layers.5"]
    assert [each.site.hook_name for each in found] == [HOOK, "blocks.5.hook_resid_post"]


def test_a_transcoder_has_two_hooks(tmp_path: Path):
    names = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    (found,) = load_candidates([save("transcoder", tmp_path / "a", **names)])
    assert str(found.site) == "blocks.3.hook_mlp_in -> blocks.3.hook_mlp_out"
    found.check_widths(torch.zeros(2, D_IN), torch.zeros(2, D_OUT))
    with pytest.raises(ValueError, match=r"a: takes 6 to 4 dimensions.*has 6 and 6 at blocks\.3"):
        found.check_widths(torch.zeros(2, D_IN), torch.zeros(2, D_IN))


def test_names_are_as_long_as_tells_coders_apart(tmp_path: Path):
    one = save("topk", tmp_path / "one" / "layers.3", hook_name=HOOK)
    two = save("binary", tmp_path / "two" / "layers.3", hook_name=HOOK)
    other = save("binary", tmp_path / "two" / "best", hook_name=HOOK)
    names = [each.name for each in load_candidates([one, two, other])]
    assert names == ["one/layers.3", "two/layers.3", "best"]
    with pytest.raises(ValueError, match="best: is named twice"):
        load_candidates([other, one, other])


def test_a_hook_is_named_where_files_do_not_and_no_other_is_taken(tmp_path: Path):
    source = save("topk", tmp_path / "a")
    with pytest.raises(ValueError, match=r"a: its files do not say which hook.*--hook"):
        load_candidates([source])
    assert load_candidates([source], HOOK)[0].site == Site(HOOK, HOOK)
    trained = save("topk", tmp_path / "b", hook_name=HOOK)
    with pytest.raises(ValueError, match=r"b: was trained on blocks\.3.*not on --hook blocks\.1"):
        load_candidates([trained], "blocks.1.hook_resid_post")


def test_a_folder_without_a_coder_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no coder"):
        load_candidates([str(tmp_path)])


def trained_on(*models: str | None) -> list[Candidate]:
    return [
        Candidate(
            f"coder {number}",
            Path(),
            TopKSAE(
                TopKSAEConfig(d_in=D_IN, d_sae=LATENTS, k=2, metadata=SAEMetadata(model_name=model))
            ),
            Site(HOOK, HOOK),
        )
        for number, model in enumerate(models)
    ]


def test_the_model_is_that_of_all_coders(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert common_model(trained_on("a/one", None, "a/one"), None) == "a/one"
    assert common_model(trained_on("a/one", None), "a/one") == "a/one"
    # A local folder is accepted, because its name does not say which model it holds.
    assert common_model(trained_on("a/one"), str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match=r"name \['a/one', 'a/two'\].*--model"):
        common_model(trained_on("a/one", "a/two"), None)
    with pytest.raises(ValueError, match=r"name none.*--model"):
        common_model(trained_on(None), None)
    assert not caplog.records
    # The user's choice of model counts, because a different name may be a mirror of the same model.
    assert common_model(trained_on("a/one", "a/two"), "a/one") == "a/one"
    assert caplog.messages == ["coder 1 was trained on a/two, and is read in a/one."]


@pytest.mark.parametrize(
    ("names", "official"),
    [
        (("gpt2-small", "openai-community/gpt2"), "gpt2"),
        (("gpt2", "openai-community/gpt2"), "gpt2"),
        (("gpt2-xl", "openai-community/gpt2-xl"), "gpt2-xl"),
        (("distilgpt2", "distilbert/distilgpt2"), "distilgpt2"),
        (("gemma-2-2b", "google/gemma-2-2b"), "google/gemma-2-2b"),
        (("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"), "EleutherAI/pythia-70m-deduped"),
    ],
)
def test_two_names_of_one_model_are_one(
    names: tuple[str, str], official: str, caplog: pytest.LogCaptureFixture
):
    assert common_model(trained_on(*names), None) == official
    for name in names:
        assert common_model(trained_on(*names), name) == name
        # If coders have a single name, the name is not changed.
        assert common_model(trained_on(name, None), None) == name
    assert not caplog.records


def test_names_that_are_near_are_not_one():
    with pytest.raises(ValueError, match=r"coder 0: gpt2-small, coder 1: gpt2-medium"):
        common_model(trained_on("gpt2-small", "gpt2-medium"), None)
    with pytest.raises(ValueError, match=r"gemma-2-2b-it"):
        common_model(trained_on("gemma-2-2b", "google/gemma-2-2b-it"), None)


@pytest.mark.parametrize(
    ("positions", "warned"), [(None, False), ((1, None), False), ((5, -5), True), ((2, None), True)]
)
def test_positions_that_a_coder_was_not_trained_on_are_told(
    positions: Any, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    load_candidates([save("topk", tmp_path / "a", hook_name=HOOK, seqpos_slice=positions)])
    assert any("a was trained on the positions" in each for each in caplog.messages) == warned


def test_a_head_is_a_site_of_its_own(tmp_path: Path):
    hook = "blocks.3.attn.hook_z"
    heads = [
        save("topk", tmp_path / f"head{head}", hook_name=hook, hook_head_index=head)
        for head in (0, 5)
    ]
    found = load_candidates([*heads, save("topk", tmp_path / "all", hook_name=hook)])
    assert [str(each.site) for each in found] == [f"{hook}[0]", f"{hook}[5]", hook]
