"""The remedies that error texts name work. test_published_*.py has tests of further ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_binary_ext.checkpoints import CheckpointError, convert, load_coder, push
from sae_binary_ext.cli import main
from sae_binary_ext.measure.in_model import load_hooked_model
from tests.checkpoints.coders import CASES, LATENTS, D
from tests.checkpoints.published_papers import TIME, Cho, as_script, cho_state
from tests.small_models import save_tokenizer


@dataclass(frozen=True)
class Remedy:
    """A mistake, the remedy that its error names, and a function that follows the remedy.

    Attributes:
        prepare: makes files in a folder, and returns the folder of the coder or coders.
        mistake: makes the mistake, which raises the error.
        says: words of the error that name the remedy.
        follow: does what the error says.
    """

    prepare: Callable[[Path], Path]
    mistake: Callable[[Path], Any]
    says: str
    follow: Callable[[Path], Any]


def sparsify_elsewhere(root: Path) -> Path:
    """A coder of sparsify in a folder whose name is no hookpoint."""
    return CASES["sparsify topk_binary"].save(root).rename(root / "mine")


def saelens_at(hook: str) -> Callable[[Path], Path]:
    def prepare(root: Path) -> Path:
        coder = CASES["saelens topk"].make()
        coder.cfg.metadata.hook_name = hook
        coder.save_model(root / "coder")
        return root / "coder"

    return prepare


def several(root: Path) -> Path:
    for name in ("a", "b"):
        CASES["saelens topk"].make().save_model(root / "run" / name)
    return root / "run"


def standard(root: Path) -> Path:
    StandardSAE(StandardSAEConfig(d_in=D, d_sae=LATENTS)).save_model(root / "coder")
    return root / "coder"


def occupied(root: Path) -> Path:
    folder = CASES["saelens topk"].save(root)
    (root / "out").mkdir()
    (root / "out" / "notes.txt").touch()
    return folder


def copied_beside(root: Path) -> Path:
    """One folder that holds two reports of the second paper's script."""
    for time in (TIME, "20250930_101500_000002"):
        Cho(lambda _, time=time: as_script(root, time)).write(root)
    second = root / "report_20250930_101500_000002"
    for file in second.glob("*_2025*"):
        file.rename(root / f"report_{TIME}" / file.name)
    rmtree(second)
    return root / f"report_{TIME}"


def move_apart(source: Path) -> Path:
    """Move each model and its log into a folder of its own."""
    for weights in sorted(source.glob("model_*.pt")):
        time = weights.stem.removeprefix("model_")
        (source.parent / time).mkdir()
        for file in (weights, source / f"log_{time}.pkl"):
            file.rename(source.parent / time / file.name)
        load_coder(source.parent / time)
    return source


def pickled_object(root: Path) -> Path:
    """Weights of the second paper in a list, which is no state dict."""
    folder = root / "coder"
    Cho().write(folder)
    torch.save([cho_state()], folder / "model.pt")
    return folder


def at_layer_9(root: Path) -> Path:
    return CASES["sparsify topk_binary"].save(root).rename(root / "layers.9")


def contradicting(root: Path) -> Path:
    """A coder whose file says that it is an autoencoder, in a run of transcoders."""
    folder = at_layer_9(root)
    (root / "config.json").write_text(json.dumps({"model": "gpt2", "transcode": True}))
    return folder


def without_its_line(source: Path) -> Path:
    config = json.loads((source / "cfg.json").read_text())
    assert config.pop("transcode") is False
    (source / "cfg.json").write_text(json.dumps(config))
    return source


def of_this_machine(root: Path) -> Path:
    coder = CASES["saelens topk"].make()
    coder.cfg.metadata.model_name = str(root)
    coder.save_model(root / "coder")
    return root / "coder"


REMEDIES = {
    "a folder that is no hookpoint": Remedy(
        sparsify_elsewhere, load_coder, "hookpoint='layers.9'",
        lambda source: load_coder(source, hookpoint="layers.9"),
    ),
    "the same on the command line": Remedy(
        sparsify_elsewhere, lambda source: convert(source, source.parent / "out"),
        "hookpoint='layers.9'",
        lambda source: main(
            ["convert", str(source), str(source.parent / "out"), "--hookpoint", "layers.9"]
        ),
    ),
    "a hook that sparsify has no name for": Remedy(
        saelens_at("blocks.3.attn.hook_q"),
        lambda source: convert(source, source.parent / "out", "sparsify"),
        "Give hookpoint=",
        lambda source: convert(
            source, source.parent / "out", "sparsify", hookpoint="layers.3.self_attn.q_proj"
        ),
    ),
    "several coders": Remedy(
        several, load_coder, "choose one of ['a', 'b']", lambda source: load_coder(source, "b")
    ),
    "several coders of one hook": Remedy(
        several, lambda source: convert(source, source.parent / "out"), "hookpoint=...",
        lambda source: [
            convert(source, source.parent / name, hookpoint=name) for name in ("a", "b")
        ],
    ),
    "a coder that is not there": Remedy(
        several, lambda source: load_coder(source, "c"), "['a', 'b']",
        lambda source: load_coder(source, "a"),
    ),
    "an architecture of SAELens alone": Remedy(
        standard, lambda source: load_coder(source, host="sparsify"), "host='saelens'",
        lambda source: load_coder(source, host="saelens"),
    ),
    "a folder that holds other things": Remedy(
        occupied, lambda source: convert(source, source.parent / "out"), "Choose a new folder",
        lambda source: convert(source, source.parent / "new"),
    ),
    "a folder with a coder of another format": Remedy(
        occupied, lambda source: convert(source, source.parent / "out"),
        "one that a coder was written to in the same format before",
        lambda source: [convert(source, source.parent / "new") for _ in range(2)],
    ),
    "two coders of the second paper in one folder": Remedy(
        copied_beside, load_coder, "Move each with its config (log_T.pkl belongs to model_T.pt)",
        move_apart,
    ),
    "weights that are no state dict": Remedy(
        pickled_object, load_coder, "torch.save(model.state_dict(), 'model.pt')",
        lambda source: (torch.save(cho_state(), source / "model.pt"), load_coder(source)),
    ),
    "values in the first paper's format": Remedy(
        CASES["sparsify continuous"].save,
        lambda source: convert(source, source.parent / "out", "quirke2025"), "Choose sparsify",
        lambda source: convert(source, source.parent / "out", "sparsify"),
    ),
    "a run and a coder that contradict each other": Remedy(
        contradicting, load_coder, "Remove the line that is wrong",
        lambda source: load_coder(without_its_line(source)),
    ),
    "another place than the files name": Remedy(
        at_layer_9, lambda source: load_coder(source, "layers.5"),
        "leave the hookpoint out to load it", load_coder,
    ),
    "a name that is no place": Remedy(
        sparsify_elsewhere, lambda source: load_coder(source, "layer9"), "Name its hookpoint",
        lambda source: [
            load_coder(source, name)
            for name in ("layers.9", "h.9.mlp", "blocks.9.hook_resid_post")
        ],
    ),
    "a model of this machine": Remedy(
        of_this_machine, lambda source: push(source, "me/coders", dry_run=True),
        "model='user/name'",
        lambda source: push(source, "me/coders", dry_run=True, model="user/name"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_works(name: str, tmp_path: Path):
    remedy = REMEDIES[name]
    source = remedy.prepare(tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        remedy.mistake(source)
    assert remedy.says in str(refusal.value)
    remedy.follow(source)


def test_a_hookpoint_that_is_told_stands_in_the_new_files(tmp_path: Path):
    source = saelens_at("blocks.3.attn.hook_q")(tmp_path)
    convert(source, tmp_path / "out", "sparsify", hookpoint="layers.3.self_attn.q_proj")
    notes = json.loads((tmp_path / "out" / "cfg.json").read_text())["sae_binary_ext"]
    assert notes["place"]["hookpoint"] == "layers.3.self_attn.q_proj"
    # A chosen folder's name that is no place does not replace the hook of the coder's files.
    convert(several(tmp_path), tmp_path / "other", "sparsify", hookpoint="a")
    notes = json.loads((tmp_path / "other" / "cfg.json").read_text())["sae_binary_ext"]
    assert notes["place"]["hookpoint"] == "layers.3.mlp"


def test_a_folder_for_a_hooked_transformer(tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=60,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="model_class_name='HookedTransformer'") as refusal:
        load_hooked_model("HookedTransformer", str(tmp_path), "cpu")
    for class_name in ("TransformerBridge", "AutoModelForCausalLM"):
        assert f"'{class_name}'" in str(refusal.value)
        assert load_hooked_model(class_name, str(tmp_path), "cpu").tokenizer is not None
