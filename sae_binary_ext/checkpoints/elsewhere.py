"""Layouts of published coders that this package cannot read, and what loads each of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sae_binary_ext.checkpoints import releases
from sae_binary_ext.checkpoints.errors import CheckpointError

SHARDS = "weights in several files"
MODEL = "a whole model's weights, as transformers saves them"
PICKLES = "pickles of SAELens' first months (2024)"


class Layout(NamedTuple):
    """A layout of coder files, recognised by the path of one file.

    Attributes:
        what: a name for the coders of the layout.
        pattern: regex of a weights file's path, whose group `at` is the folder for SAELens.
        converter: name of SAELens' loader for the layout, or None if SAELens has no loader.
        beside: another file that must exist, if `pattern` alone is ambiguous. May use {at}.
    """

    what: str
    pattern: str
    converter: str | None = None
    beside: str | None = None


_BY_HAND = (
    "Put the tensors that code one activation into a coder of SAELens (sae_lens.StandardSAE, "
    "TopKSAE, JumpReLUSAE, …). Its save_model(FOLDER) writes a folder that loads here."
)
_CLT_OF_GEMMA = "Gemma Scope 2 cross-layer transcoders"
_OF_TRACER = "transcoders of circuit-tracer"
_OPENMOSS = "coders of OpenMOSS' Language-Model-SAEs"
# The first layout that fits is used.
LAYOUTS = (
    Layout(SHARDS, r"(.*/)?(sae|sae_weights)(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)"),
    Layout("Gemma Scope transcoders", r"(?P<at>.*transcoder.*)/params\.npz", "gemma_2_transcoder"),
    Layout("Gemma Scope SAEs", r"(?P<at>.+)/params\.npz", "gemma_2"),
    Layout("a Gemma Scope SAE without its folder", r"params\.npz"),
    Layout("Gemma Scope 2 coders", r"(?P<at>.+)/params\.safetensors", "gemma_3"),
    Layout(_CLT_OF_GEMMA, r"(?P<at>.*clt.*/params_layer_\d+)\.safetensors", "gemma_3"),
    Layout(
        "Llama Scope SAEs", r"(?P<at>.+)/checkpoints/final\.safetensors", "llama_scope",
        "{at}/hyperparams.json",
    ),
    Layout(
        _OPENMOSS, r"(?P<at>.+)/sae_weights\.safetensors", "llama_scope_r1_distill",
        "{at}/config.json",
    ),
    Layout("SAEs of dictionary_learning", r"(?P<at>.+)/ae\.pt", "dictionary_learning_1"),
    Layout("an SAE of dictionary_learning without its folder", r"ae\.pt"),
    Layout(
        f"cross-layer {_OF_TRACER}", r"(.*/)?W_(enc|dec)_(?P<at>\d+)\.safetensors",
        "mntss_clt_layer_transcoder",
    ),
    Layout(_OF_TRACER, r"(?P<at>(.*/)?layer_\d+\.safetensors)", "mwhanna_transcoder"),
    Layout("Qwen Scope SAEs", r"(?P<at>(.*/)?layer\d+\.sae\.pt)", "qwen_scope"),
    Layout("SAEs of qresearch", r"(?P<at>.*DeepSeek.*SAE-l\d+\.pth?)", "deepseek_r1"),
    Layout("Goodfire's SAEs", r"(?P<at>.*SAE-l\d+\.pth?)", "goodfire"),
    Layout("temporal SAEs", r"(?P<at>.+)/latest_ckpt\.safetensors", "temporal", "{at}/conf.yaml"),
    Layout(PICKLES, r"(.*/)?(final_)?sparse_autoencoder_.*\.pt|.*_log_feature_sparsity\.pt"),
    Layout(
        "attention SAEs of Kissane and others", r"(?P<at>(?P<stem>.*)\.pt)", "connor_rob_hook_z",
        "{stem}_cfg.json",
    ),
    Layout("a crosscoder", r".*(crosscoder|cc_weights).*\.(safetensors|pt|pth|bin)"),
    Layout(MODEL, r"(.*/)?(pytorch_)?model(-.*)?\.(safetensors|pt|pth|bin)"),
)  # fmt: skip
WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth", ".npz", ".bin", ".ckpt", ".pkl", ".h5", ".npy")


def no_coder(source: object, files: Iterable[str], expected: Iterable[str]) -> CheckpointError:
    """The error for a source without a coder of a format that this package reads.

    files: paths of all files of the source. expected: names of weights files that could be read.
    """
    listed = sorted(files)
    start = f"{source}: holds no coder; expected one of {sorted(expected)}."
    found = _recognised(listed, listed)
    if found is None:
        return CheckpointError(f"{start} {_unknown(listed)}")
    layout, match = found
    if layout.what == SHARDS:
        remedy = _joining(source, match[0])
    elif layout.converter is not None:
        call = _call(str(source), match["at"], layout.converter)
        remedy = f"SAELens loads it from the Hub: {call}."
        remedy += " Here too, name it RELEASE/ID, or USER/REPOSITORY and its path there."
    elif gpt2 := re.search(r"gpt2-small_(blocks\.\d+\.hook_resid_pre)_24576", match[0]):
        call = f"SAE.from_pretrained('gpt2-small-res-jb', '{gpt2[1]}')"
        remedy = f"Load the author's newer release: {call}."
    elif layout.what == MODEL:
        remedy = "Give the folder or repository of a coder. The model of a coder goes to --model."
    elif layout.what == PICKLES:
        remedy = (
            "A pickle can run any code, so this package does not read it. Look for the same coder "
            "in SAELens' list, which SAE.from_pretrained loads from: "
            "sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory()."
        )
    else:
        remedy = f"Neither this package nor SAELens reads it. {_BY_HAND}"
    return CheckpointError(f"{start} It holds {layout.what}: {match[0]}. {remedy}")


def _recognised(files: list[str], beside: list[str]) -> tuple[Layout, re.Match[str]] | None:
    """The layout of the files, and the match for the weights file, or None if no layout fits.

    beside: paths of all files of the source, among which the layout's other file must be.
    """
    for layout in LAYOUTS:
        for match in filter(None, (re.fullmatch(layout.pattern, name) for name in files)):
            if layout.beside is None or layout.beside.format(**match.groupdict()) in beside:
                return layout, match
    return None


def paths_elsewhere(files: Iterable[str]) -> dict[str, str]:
    """SAELens' converter of each coder that SAELens loads, by its path among `files`."""
    listed, found = sorted(files), dict[str, str]()
    for name in listed:
        first = _recognised([name], listed)
        if first is not None and first[0].converter is not None:
            found.setdefault(first[1]["at"], first[0].converter)
    return found


def _unknown(files: list[str]) -> str:
    """The text that says what a source of unknown layout holds."""
    weights = [name for name in files if name.endswith(WEIGHTS_ENDINGS)]
    names = weights or files
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if weights:
        return f"Its weights are in an unknown layout: {some}. {_BY_HAND}"
    return f"It holds no weights file, only {some}." if files else "It is empty."


def _joining(source: object, shard: str) -> str:
    """The lines of Python that join a coder's shards into one file."""
    folder, _, name = shard.rpartition("/")
    stem = re.split(r"-\d+-of-|\.safetensors", name)[0]
    local, start = Path(str(source)), "Join"
    if not local.exists():
        local = Path("FOLDER")
        start = f"Download it (hf download {source} --local-dir FOLDER) and join"
    return (
        f"{start} them:\n"
        "  from pathlib import Path\n"
        "  from safetensors.torch import load_file, save_file\n"
        f"  folder = Path({str(local / folder)!r})\n"
        "  tensors = {}\n"
        f"  for shard in folder.glob('{stem}-*-of-*.safetensors'):\n"
        "      tensors |= load_file(shard)\n"
        f"  save_file(tensors, folder / '{stem}.safetensors')"
    )


def _call(source: str, at: str, converter: str) -> str:
    """The text of a call that loads a coder, with the number of other releases that may fit."""
    repository = None if Path(source).exists() else source
    if cached := re.search(r"models--([^/]+?)--([^/]+)", source):
        repository = f"{cached[1]}/{cached[2]}"
    if known := releases.listed_at(at, repository):
        more = len(known) - 1
        others = f" ({more} more releases have a coder of this name)" if more else ""
        return f"SAE.from_pretrained{known[0]}{others}"
    try:
        from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS
    except ModuleNotFoundError:
        loader = f"the loader {converter!r}"
    else:
        loader = getattr(NAMED_PRETRAINED_SAE_LOADERS[converter], "__name__", converter)
    where = repository or "USER/REPOSITORY"
    return (
        f"SAE.from_pretrained({where!r}, {at!r}, converter={loader}), with {loader} of "
        "sae_lens.loading.pretrained_sae_loaders"
    )
