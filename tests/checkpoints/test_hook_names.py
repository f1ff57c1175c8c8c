from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sae_binary_ext.checkpoints import HOOK_NAMES, CheckpointError, HookName, load_coder
from sae_binary_ext.checkpoints.hook_names import place_in_saelens, place_in_sparsify
from sae_binary_ext.checkpoints.portable import Place
from tests.checkpoints.coders import CASES

LLAMA, NEOX, GPT2 = "HuggingFaceTB/SmolLM2-135M", "EleutherAI/pythia-70m", "openai-community/gpt2"
GEMMA = "google/gemma-2-2b"

AUTOENCODERS = [
    (LLAMA, "layers.9", "blocks.9.hook_resid_post"),
    (LLAMA, "layers.9.mlp", "blocks.9.hook_mlp_out"),
    (LLAMA, "layers.12.self_attn", "blocks.12.hook_attn_out"),
    (LLAMA, "embed_tokens", "hook_embed"),
    (NEOX, "layers.0.attention", "blocks.0.hook_attn_out"),
    (NEOX, "embed_in", "hook_embed"),
    (GPT2, "h.11", "blocks.11.hook_resid_post"),
    (GPT2, "h.11.mlp", "blocks.11.hook_mlp_out"),
    (GPT2, "wte", "hook_embed"),
    # Its hook_mlp_out comes after another normalisation.
    (GEMMA, "layers.9.mlp", "blocks.9.mlp.hook_out"),
    (GEMMA, "layers.9", "blocks.9.hook_resid_post"),
]
TRANSCODERS = [
    (LLAMA, "layers.9.mlp", "blocks.9.mlp.hook_in", "blocks.9.hook_mlp_out"),
    (LLAMA, "layers.9", "blocks.9.hook_resid_pre", "blocks.9.hook_resid_post"),
    (GPT2, "h.3.mlp", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
    (GEMMA, "layers.9.mlp", "blocks.9.mlp.hook_in", "blocks.9.mlp.hook_out"),
]


@pytest.mark.parametrize(("model", "hookpoint", "hook_name"), AUTOENCODERS)
def test_autoencoders_names_both_ways(model: str, hookpoint: str, hook_name: str):
    sparsify = Place(hookpoint=hookpoint, model_name=model)
    assert place_in_saelens(sparsify, False) == replace(sparsify, hook_name=hook_name)
    saelens = Place(hook_name=hook_name, model_name=model)
    assert place_in_sparsify(saelens, False) == replace(saelens, hookpoint=hookpoint)


@pytest.mark.parametrize(("model", "hookpoint", "hook_name", "hook_name_out"), TRANSCODERS)
def test_transcoders_names_both_ways(
    model: str, hookpoint: str, hook_name: str, hook_name_out: str
):
    both = Place(None, hook_name, hook_name_out, model)
    named = Place(hookpoint, hook_name, hook_name_out, model)
    assert place_in_saelens(Place(hookpoint=hookpoint, model_name=model), True) == named
    assert place_in_sparsify(both, True) == named


@pytest.mark.parametrize(
    ("hookpoint", "hook_name"),
    [
        ("layers.9", "blocks.9.hook_resid_post"),
        ("h.9", "blocks.9.hook_resid_post"),
        ("layers.9.mlp", "blocks.9.mlp.hook_out"),
        ("embed_tokens", "embed.hook_out"),
    ],
)
@pytest.mark.parametrize("model", [None, "someone/unheard-of"])
def test_a_hookpoint_of_an_unknown_model_has_the_name_that_is_right_in_any(
    model: str | None, hookpoint: str, hook_name: str
):
    place = place_in_saelens(Place(hookpoint=hookpoint, model_name=model), False)
    assert place.hook_name == hook_name


@pytest.mark.parametrize(
    ("hook_name", "hookpoint"),
    [
        ("model.layers.9", "layers.9"),
        ("model.layers.9.mlp", "layers.9.mlp"),
        ("model.embed_tokens", "embed_tokens"),
        ("transformer.h.9.mlp", "h.9.mlp"),
    ],
)
def test_module_names_need_no_model(hook_name: str, hookpoint: str):
    assert place_in_sparsify(Place(hook_name=hook_name), False).hookpoint == hookpoint


def test_what_enters_a_block_left_the_one_before():
    entering = Place(hook_name="blocks.9.hook_resid_pre", model_name=LLAMA)
    assert place_in_sparsify(entering, False).hookpoint == "layers.8"
    first = Place(hook_name="blocks.0.hook_resid_pre", model_name=LLAMA)
    with pytest.raises(CheckpointError, match=r"hook_name='blocks.0.hook_resid_pre'"):
        place_in_sparsify(first, False)


@pytest.mark.parametrize("model", [None, "someone/unheard-of"])
def test_a_block_s_hook_of_an_unknown_model_is_no_hookpoint(model: str | None):
    place = Place(hook_name="blocks.9.hook_resid_post", model_name=model)
    with pytest.raises(CheckpointError, match="no hookpoint of sparsify is known"):
        place_in_sparsify(place, False)


@pytest.mark.parametrize("hookpoint", ["layers.9.mlp.down_proj", "layers.x", "Layers.9", "lm_head"])
def test_an_unknown_hookpoint_is_an_error(hookpoint: str):
    with pytest.raises(CheckpointError, match="no SAELens name is known"):
        place_in_saelens(Place(hookpoint=hookpoint, model_name=LLAMA), False)


def test_transcoders_without_a_hook_for_their_input_are_refused():
    attention = Place(hookpoint="layers.9.self_attn", model_name=LLAMA)
    with pytest.raises(CheckpointError, match="its input and output"):
        place_in_saelens(attention, True)
    crossed = Place(None, "blocks.8.mlp.hook_in", "blocks.9.hook_mlp_out", LLAMA)
    with pytest.raises(CheckpointError, match=r"hook_name='blocks.8.mlp.hook_in'"):
        place_in_sparsify(crossed, True)


def test_names_that_a_coder_has_are_kept():
    both = Place("layers.9.mlp", "hook_of_mine", None, LLAMA)
    assert place_in_saelens(both, False) == both
    assert place_in_sparsify(both, False) == both


@pytest.fixture
def a_name_of_mine() -> Iterator[None]:
    line = HookName(
        "layers.{layer}.mlp.down_proj",
        "blocks.{layer}.mlp.out.hook_out",
        "blocks.{layer}.mlp.out.hook_in",
    )
    HOOK_NAMES.insert(0, line)
    yield
    HOOK_NAMES.remove(line)


@pytest.mark.usefixtures("a_name_of_mine")
def test_the_table_learns_a_name():
    place = Place(hookpoint="layers.9.mlp.down_proj", model_name=LLAMA)
    named = place_in_saelens(place, True)
    assert named.hook_name == "blocks.9.mlp.out.hook_in"
    assert named.hook_name_out == "blocks.9.mlp.out.hook_out"
    assert place_in_sparsify(replace(named, hookpoint=None), True) == named


def test_a_coder_in_a_folder_of_no_hookpoint_says_so(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    moved = folder.rename(tmp_path / "my coder")
    with pytest.raises(CheckpointError, match=r"'my coder'.*hookpoint='layers.9'"):
        load_coder(moved)
    sae = load_coder(moved, hookpoint="layers.9")
    assert sae.cfg.metadata.hook_name == "blocks.9.hook_resid_post"
    assert load_coder(moved, host="sparsify").cfg.k == sae.cfg.k
