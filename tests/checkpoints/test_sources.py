"""Which coders a source holds, their names, and their places in a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sparsify import SparseCoder, SparseCoderConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_binary_ext.checkpoints import (
    CheckpointError,
    coder_to_saelens,
    convert,
    describe,
    load_coder,
    push,
)
from sae_binary_ext.measure.candidates import load_candidates
from tests.checkpoints.coders import CASES, HOOKPOINT, MODEL, OUTPUT_HOOK, D, K

RESID = "blocks.{}.hook_resid_post"


def coder() -> SparseCoder:
    return SparseCoder(D, SparseCoderConfig(num_latents=4 * D, k=K))


def run_of_coders(root: Path, *names: str, **fields: Any) -> Path:
    """Write a run of coders. All values of a coder's b_dec are the number of the coder."""
    for number, name in enumerate(names):
        made = coder()
        made.b_dec.data.fill_(number)
        made.save_to_disk(root / name)
    (root / "config.json").write_text(json.dumps({"model": MODEL, **fields}))
    return root


def runner_output(root: Path, hook_name: str | None = RESID.format(9)) -> Path:
    """Write what SAELens' runner writes: the final coder and its earlier checkpoints."""
    for folder in (root, root / "checkpoints" / "abc" / "1000", root / "checkpoints/abc/2000"):
        sae = CASES["saelens topk"].make()
        sae.cfg.metadata.hook_name = hook_name
        sae.save_model(folder)
    return root


def test_a_hookpoint_that_is_not_there_is_an_error_with_the_names(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", ".", "layers.1", "layers.2")
    with pytest.raises(CheckpointError, match=r"no coder 'layers.3' but \['.', 'layers.1', "):
        load_coder(run, "layers.3")
    for name, value in ((".", 0), ("layers.1", 1), ("layers.2", 2), (None, 0)):
        assert load_coder(run, name, host="sparsify").b_dec[0] == value


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
def test_a_root_s_coder_is_given_under_no_other_place(host: Any, tmp_path: Path):
    output = runner_output(tmp_path / "output")
    with pytest.raises(CheckpointError, match=r"no coder 'layers.3'.*at.*blocks.9.hook_resid_post"):
        load_coder(output, "layers.3", host=host)
    for name in (None, ".", "blocks.9.hook_resid_post", "blocks.10.hook_resid_pre", "layers.9"):
        load_coder(output, name, host=host)
    run = run_of_coders(tmp_path / "run", "layers.9")
    with pytest.raises(CheckpointError, match=r"no coder 'layers.3'.*belongs at layers.9"):
        load_coder(run / "layers.9", "layers.3", host=host)
    load_coder(run / "layers.9", "model.layers.9", host=host)


def test_a_stock_coder_is_given_under_no_other_place(tmp_path: Path):
    stock = StandardSAE(StandardSAEConfig(d_in=D, d_sae=4 * D))
    stock.cfg.metadata.hook_name = RESID.format(9)
    stock.save_model(tmp_path / "told")
    with pytest.raises(CheckpointError, match=r"no coder 'blocks.3.hook_resid_post'"):
        load_coder(tmp_path / "told", RESID.format(3))
    stock.cfg.metadata.hook_name = None
    stock.save_model(tmp_path / "untold")
    sae = load_coder(tmp_path / "untold", "layers.9")
    assert sae.cfg.metadata.hook_name == RESID.format(9)


def test_the_place_of_a_root_s_coder_is_stated_where_its_files_do_not_tell(tmp_path: Path):
    coder().save_to_disk(tmp_path / "mine")
    for stated, hook in (
        ("layers.9", RESID.format(9)),
        ("layers.9.mlp", "blocks.9.mlp.hook_out"),
        ("blocks.9.hook_attn_out", "blocks.9.hook_attn_out"),
    ):
        assert load_coder(tmp_path / "mine", stated).cfg.metadata.hook_name == hook
    with pytest.raises(CheckpointError, match=r"'layer.9' is neither a folder there nor a place"):
        load_coder(tmp_path / "mine", "layer.9", host="sparsify")
    (found,) = load_candidates([str(tmp_path / "mine")], "layers.9")
    assert found.site.hook_name == RESID.format(9)
    with pytest.raises(CheckpointError, match=r"'mine'.*--hook layers.9 to compare it"):
        load_candidates([str(tmp_path / "mine")])


def test_a_hook_has_other_names(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", "layers.8")
    for name in ("layers.8", "model.layers.8", RESID.format(8), "blocks.9.hook_resid_pre"):
        (found,) = load_candidates([str(run)], name)
        assert found.site.hook_name == RESID.format(8)
    with pytest.raises(ValueError, match=r"was trained on blocks\.8.*not on --hook layers\.9"):
        load_candidates([str(run)], "layers.9")


def test_a_stranger_s_weights_at_the_root_do_not_hide_the_coders(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", "layers.1", "layers.2")
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, run / "model.pt")
    assert [each.name for each in describe(run)] == ["layers.1", "layers.2"]
    assert load_coder(run, "layers.2").cfg.metadata.hook_name == RESID.format(2)


def test_all_of_a_runner_s_output_is_described_and_its_last_coder_taken(tmp_path: Path):
    output = runner_output(tmp_path / "output")
    names = [each.name for each in describe(output)]
    assert names == ["output", "checkpoints/abc/1000", "checkpoints/abc/2000"]
    assert torch.equal(load_coder(output).W_dec, SAE.load_from_disk(output).W_dec)
    step = SAE.load_from_disk(output / "checkpoints/abc/1000")
    assert torch.equal(load_coder(output, "checkpoints/abc/1000").W_dec, step.W_dec)
    with pytest.raises(
        CheckpointError, match=r"'checkpoints/abc/3000' but \['.', 'checkpoints/abc/"
    ):
        load_coder(output, "checkpoints/abc/3000")
    assert convert(output, tmp_path / "out", "sparsify") == [tmp_path / "out"]
    assert len(load_candidates([str(output)])) == 1


SEEDS = ("layers.1/seed0", "layers.1/seed7", "layers.2/seed0", "layers.2/seed7")


def test_seeds_are_coders_of_the_hookpoint_above(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", *SEEDS, init_seeds=[0, 7])
    described = {each.name: each.coder for each in describe(run)}
    assert list(described) == list(SEEDS)
    for name, found in described.items():
        assert found is not None
        assert (found.place.hookpoint, found.place.model_name) == (name.split("/")[0], MODEL)
    assert load_coder(run, "layers.2/seed7").cfg.metadata.hook_name == RESID.format(2)
    with pytest.raises(CheckpointError, match=r"one of \['layers.2/seed0', 'layers.2/seed7'\]"):
        load_coder(run, "layers.2")
    found = load_candidates([str(run)])
    assert [each.site.hook_name for each in found] == [RESID.format(n) for n in (1, 1, 2, 2)]
    assert {each.model_name for each in found} == {MODEL}


def test_seeds_and_the_best_of_a_run_are_converted_to_folders_of_their_own(tmp_path: Path):
    # The last name is the folder for the best coder of a sparsify run on fvu.
    names = (*SEEDS[:2], "best/layers.2", "layers.2", "layers.3", "best/layers.3/layers.3")
    run = run_of_coders(tmp_path / "run", *names)
    written = convert(run, tmp_path / "out")
    own = [RESID.format(layer) for layer in (1, 2, 3)]
    expected = {f"{own[0]}/seed0", f"{own[0]}/seed7", own[1], own[2]}
    expected |= {f"best/{own[1]}", f"best/{own[2]}"}
    assert {str(path.relative_to(tmp_path / "out")) for path in written} == expected
    assert SAE.load_from_disk(tmp_path / "out/best" / own[2]).b_dec[0] == 5
    back = convert(tmp_path / "out", tmp_path / "back", "sparsify")
    names = (*SEEDS[:2], "best/layers.2", "layers.2", "layers.3", "best/layers.3")
    assert {str(path.relative_to(tmp_path / "back")) for path in back} == set(names)


def test_seeds_are_published_with_the_model_of_their_run(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", *SEEDS[:2])
    upload = push(run, "me/coders", dry_run=True)
    assert f"{SEEDS[0]}/sae.safetensors" in upload.files
    assert MODEL in upload.cards[f"{SEEDS[0]}/README.md"]


def test_seeds_of_one_hookpoint_s_folder_keep_their_names_and_their_place(tmp_path: Path):
    folder = run_of_coders(tmp_path / "run", *SEEDS[:2]) / "layers.1"
    written = convert(folder, tmp_path / "out")
    expected = {f"{RESID.format(1)}/seed0", f"{RESID.format(1)}/seed7"}
    assert {str(path.relative_to(tmp_path / "out")) for path in written} == expected
    for source, names in ((folder, SEEDS[:2]), (folder / "seed7", SEEDS[1:2])):
        upload = push(source, "me/coders", dry_run=True)
        weights = {file for file in upload.files if file.endswith(".safetensors")}
        assert weights == {f"{name}/sae.safetensors" for name in names}


def test_what_the_run_alone_says_is_published_with_the_coder(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", HOOKPOINT, transcode=True)
    config = json.loads((run / HOOKPOINT / "cfg.json").read_text())
    old = {key: config[key] for key in ("num_latents", "k", "skip_connection", "d_in")}
    (run / HOOKPOINT / "cfg.json").write_text(json.dumps(old))
    assert load_coder(run).cfg.metadata.hook_name_out == OUTPUT_HOOK
    upload = push(run, "me/coders", dry_run=True)
    assert "TopK transcoder" in upload.cards[f"{HOOKPOINT}/README.md"]
    # The uploaded config is a new one, because the coder's own does not say transcoder.
    assert upload.files[f"{HOOKPOINT}/cfg.json"] > len(json.dumps(old))


@pytest.mark.parametrize(
    ("model", "ctx_len", "context_size", "prepend_bos"),
    [
        (MODEL, 2048, 2048, False),
        (MODEL, None, 1024, False),
        ("openai-community/gpt2", 2048, 1024, False),
        ("EleutherAI/pythia-160m", 512, 512, False),
        ("meta-llama/Llama-3.2-1B", 2048, 2048, True),
        ("google/gemma-2-2b", 2048, 2048, True),
    ],
)
def test_saelens_is_told_what_text_a_coder_was_trained_on(
    model: str, ctx_len: int | None, context_size: int, prepend_bos: bool, tmp_path: Path
):
    run = run_of_coders(tmp_path / "run", "layers.1", ctx_len=ctx_len, model=model)
    for sae in (load_coder(run), SAE.load_from_disk(convert(run, tmp_path / "out")[0])):
        assert sae.cfg.metadata.context_size == context_size
        assert sae.cfg.metadata.prepend_bos is prepend_bos
    again = load_coder(convert(run, tmp_path / "again", "sparsify")[0], "layers.1")
    assert again.cfg.metadata.context_size == context_size
    in_memory = coder_to_saelens(coder(), "layers.1", model).cfg.metadata
    assert (in_memory.context_size, in_memory.prepend_bos) == (1024, prepend_bos)


def test_a_module_without_a_hook_names_the_class_of_models_that_has_it(tmp_path: Path):
    run = run_of_coders(tmp_path / "run", "layers.5.mlp.act_fn")
    metadata = load_coder(run).cfg.metadata
    assert metadata.hook_name == "model.layers.5.mlp.act_fn"
    assert metadata.model_class_name == "AutoModelForCausalLM"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_saelens_activations_store_takes_a_coder_of_sparsify(tmp_path: Path):
    name = str(tmp_path / "model")
    run = run_of_coders(tmp_path / "run", "layers.0", ctx_len=8, model=name)
    sae = load_coder(run)
    config = HookedTransformerConfig(
        n_layers=1, d_model=D, n_ctx=8, d_head=4, n_heads=2, d_vocab=50, act_fn="relu"
    )
    tokens = Dataset.from_list([{"tokens": list(range(2, 10))}] * 8)
    store = ActivationsStore.from_sae(
        HookedTransformer(config),
        sae,
        tokens,
        streaming=False,
        store_batch_size_prompts=2,
        n_batches_in_buffer=2,
        train_batch_size_tokens=8,
    )
    assert store.context_size == 8
    assert next(iter(store)).shape[-1] == D
