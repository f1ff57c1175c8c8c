from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sae_binary_ext.checkpoints import HOOK_NAMES, CheckpointError, HookName, load_coder
from sae_binary_ext.checkpoints.hook_names import place_in_saelens, place_in_sparsify, same_place
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
    # In Gemma 2, hook_mlp_out comes after another normalisation.
    (GEMMA, "layers.9.mlp", "blocks.9.mlp.hook_out"),
    (GEMMA, "layers.9", "blocks.9.hook_resid_post"),
]
TRANSCODERS = [
    (LLAMA, "layers.9.mlp", "blocks.9.mlp.hook_in", "blocks.9.hook_mlp_out"),
    (LLAMA, "layers.9", "blocks.9.hook_resid_pre", "blocks.9.hook_resid_post"),
    (GPT2, "h.3.mlp", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
    (GEMMA, "layers.9.mlp", "blocks.9.mlp.hook_in", "blocks.9.mlp.hook_out"),
]


OLMO2, LATER_GEMMA, FIRST_GEMMA = "allenai/OLMo-2-0425-1B", "google/gemma-3-1b", "google/gemma-2b"
# Modules inside a block. tests/integration/test_hook_names.py compares their activations.
PARTS = [
    (LLAMA, "layers.5.mlp.down_proj", "blocks.5.hook_mlp_out"),
    (LLAMA, "layers.5.mlp.gate_proj", "blocks.5.mlp.hook_pre"),
    (LLAMA, "layers.5.mlp.up_proj", "blocks.5.mlp.hook_pre_linear"),
    # TransformerLens has no hook for the gate's activation: hook_post is the gate times up_proj.
    (LLAMA, "layers.5.mlp.act_fn", "model.layers.5.mlp.act_fn"),
    (LLAMA, "layers.5.self_attn.o_proj", "blocks.5.hook_attn_out"),
    (LLAMA, "layers.5.self_attn.q_proj", "model.layers.5.self_attn.q_proj"),
    (LLAMA, "layers.5.input_layernorm", "blocks.5.ln1.hook_out"),
    # hook_normalized would be wrong: there the norm's weights are not multiplied in yet.
    (LLAMA, "layers.5.post_attention_layernorm", "blocks.5.ln2.hook_out"),
    (LLAMA, "norm", "ln_final.hook_out"),
    (NEOX, "layers.5.attention.dense", "blocks.5.hook_attn_out"),
    (NEOX, "layers.5.mlp.dense_4h_to_h", "blocks.5.hook_mlp_out"),
    (NEOX, "layers.5.mlp.dense_h_to_4h", "blocks.5.mlp.hook_pre"),
    (NEOX, "layers.5.mlp.act", "blocks.5.mlp.hook_post"),
    (NEOX, "layers.5.post_attention_layernorm", "blocks.5.ln2.hook_out"),
    (NEOX, "layers.5.attention.query_key_value", "gpt_neox.layers.5.attention.query_key_value"),
    (GPT2, "h.5.mlp.act", "blocks.5.mlp.hook_post"),
    (GPT2, "h.5.mlp.c_proj", "blocks.5.hook_mlp_out"),
    (GPT2, "h.5.attn.c_proj", "blocks.5.hook_attn_out"),
    (GPT2, "h.5.ln_2", "blocks.5.ln2.hook_out"),
    (GEMMA, "layers.5.mlp.down_proj", "blocks.5.mlp.hook_out"),
    (GEMMA, "layers.5.post_attention_layernorm", "blocks.5.hook_attn_out"),
    (LATER_GEMMA, "layers.5.post_feedforward_layernorm", "blocks.5.hook_mlp_out"),
    (GEMMA, "layers.5.pre_feedforward_layernorm", "blocks.5.ln2.hook_out"),
    (FIRST_GEMMA, "layers.5.post_attention_layernorm", "blocks.5.ln2.hook_out"),
    (OLMO2, "layers.5.post_attention_layernorm", "blocks.5.hook_attn_out"),
    (OLMO2, "layers.5", "blocks.5.hook_resid_post"),
    (None, "layers.5.mlp.down_proj", "blocks.5.mlp.out.hook_out"),
    (None, "h.5.attn.c_proj", "blocks.5.attn.o.hook_out"),
    (None, "layers.5.feed_forward", "blocks.5.mlp.hook_out"),
]
WRAPPERS = ("model.", "transformer.", "gpt_neox.", "language_model.", "model.language_model.")


@pytest.mark.parametrize(("model", "hookpoint", "hook_name"), PARTS)
def test_parts_of_a_block_have_names_in_saelens(model: str | None, hookpoint: str, hook_name: str):
    place = place_in_saelens(Place(hookpoint=hookpoint, model_name=model), False)
    assert place.hook_name == hook_name


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("model", "hookpoint", "hook_name"), [*AUTOENCODERS, *PARTS])
def test_wrappers_of_a_language_model_change_no_place(
    model: str | None, hookpoint: str, hook_name: str, wrapper: str
):
    place = place_in_saelens(Place(hookpoint=wrapper + hookpoint, model_name=model), False)
    # If SAELens has no hook for a module, the module's name keeps the wrapper that was given.
    own = wrapper + hookpoint if hook_name.endswith(hookpoint) else hook_name
    assert place.hook_name == own
    module = Place(hook_name=wrapper + hookpoint)
    assert place_in_sparsify(module, False).hookpoint == hookpoint


def test_transcoders_of_parts_read_their_inputs():
    for hookpoint, source, target in (
        ("layers.5.mlp.down_proj", "blocks.5.mlp.hook_post", "blocks.5.mlp.out.hook_out"),
        ("model.layers.5.mlp", "blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out"),
    ):
        place = place_in_saelens(Place(hookpoint=hookpoint, model_name=LLAMA), True)
        assert (place.hook_name, place.hook_name_out) == (source, target)


@pytest.mark.parametrize(
    "hookpoint",
    ["vision_tower.encoder.layers.5", "layers.5.mlp.experts.3", "layers.5.mlp.act_fn.0"],
)
def test_modules_that_are_no_part_of_a_language_model_s_block_are_errors(hookpoint: str):
    with pytest.raises(CheckpointError, match="no SAELens name is known"):
        place_in_saelens(Place(hookpoint=hookpoint, model_name=LLAMA), False)


@pytest.mark.parametrize(
    ("first", "second", "model", "same"),
    [
        ("layers.8", "blocks.9.hook_resid_pre", None, True),
        ("blocks.8.hook_out", "model.layers.8", None, True),
        ("blocks.8.hook_in", "layers.7", None, True),
        ("blocks.8.hook_mlp_out", "blocks.8.mlp.hook_out", LLAMA, True),
        ("blocks.8.hook_mlp_out", "blocks.8.mlp.hook_out", GEMMA, False),
        ("blocks.8.hook_mlp_out", "layers.8.mlp", LLAMA, True),
        ("blocks.8.hook_mlp_out", "layers.8.mlp", GEMMA, False),
        ("hook_embed", "embed_tokens", LLAMA, True),
        ("layers.8", "layers.9", LLAMA, False),
        ("layers.8", "layers.8.mlp", LLAMA, False),
    ],
)
def test_places_have_several_names(first: str, second: str, model: str | None, same: bool):
    assert same_place(first, second, model) is same
    assert same_place(second, first, model) is same


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


@pytest.mark.parametrize("hookpoint", ["layers.9.mlp.router", "layers.x", "Layers.9", "lm_head"])
def test_an_unknown_hookpoint_is_an_error(hookpoint: str):
    with pytest.raises(CheckpointError, match="no SAELens name is known"):
        place_in_saelens(Place(hookpoint=hookpoint, model_name=LLAMA), False)


def test_transcoders_without_a_hook_for_their_input_are_refused():
    for hookpoint in ("layers.9.self_attn", "layers.9.self_attn.o_proj", "layers.9.mlp.act_fn"):
        with pytest.raises(CheckpointError, match="its input and output"):
            place_in_saelens(Place(hookpoint=hookpoint, model_name=LLAMA), True)
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
