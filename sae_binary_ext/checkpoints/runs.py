"""Reads config.json, which sparsify's runs write beside their coders."""

import re
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.hook_names import is_hookpoint
from sae_binary_ext.checkpoints.portable import PortableCoder

RUN_CONFIG = "config.json"
# BEST is a folder of the best coders so far, SEED a coder's folder if there are several seeds.
BEST, SEED = "best", re.compile(r"seed\d+")
# Tokens in a row of text if the run does not tell the number. GPT-2 has 1024 positions, and later
# models have more.
CONTEXT_SIZE = 1024
# Models with fewer positions than sparsify's 2,048 tokens in a row.
POSITIONS = {r"gpt-?2": 1024}
# Models whose tokenizers put a first token before each row that sparsify cuts.
BOS_MODELS = re.compile(r"llama|mistral|mixtral|gemma|deepseek")


def run_config(folder: Path) -> dict[str, Any]:
    """The config of the run that a coder's folder belongs to, or {}.

    config.json is in the coder's folder, or above its hookpoint's folder. Field "sae" is a dict.
    """
    folder = folder.resolve()
    folders = [folder, folder.parent]
    while _belongs_to_a_run(folder.name) and _belongs_to_a_run(folder.parent.name):
        folder = folder.parent
        folders.append(folder.parent)
    for path in (above / RUN_CONFIG for above in folders):
        config = read_json(path) if path.is_file() else {}
        of_coders = isinstance(config.get("sae"), dict)
        # The config.json of a language model has neither `sae` nor `model`.
        if of_coders or isinstance(config.get("model"), str):
            return config if of_coders else {**config, "sae": {}}
    return {}


def hookpoint_in(path: PurePath) -> str:
    """The name in a path that may be a hookpoint. For a seed, this is the parent's name."""
    return path.parent.name if SEED.fullmatch(path.name) else path.name


def _belongs_to_a_run(name: str) -> bool:
    return name == BEST or SEED.fullmatch(name) is not None or is_hookpoint(name)


def completed(config: dict[str, Any], run: dict[str, Any], path: Path) -> dict[str, Any]:
    """A coder's config, with its run's fields added. CheckpointError if the two contradict."""
    found, transcode = {**run.get("sae", {}), **config}, run.get("transcode")
    if transcode is not None and found.get("transcode", transcode) != transcode:
        raise CheckpointError(
            f"{path}: transcode={found['transcode']!r}, and the run's {RUN_CONFIG} says "
            f"{transcode!r}. Remove the line that is wrong."
        )
    if transcode is None and is_of_2024(config, run):
        # Only transcoders were trained with a skip connection.
        transcode = found.get("skip_connection") is True
    return found if transcode is None else {**found, "transcode": transcode}


def is_of_2024(config: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether sparsify from before 12 February 2025 wrote a coder's config.

    That day's commits f02711e and b5e29a0 added the fields transcode and activation. Until then,
    transcoders subtracted b_dec from their input.
    """
    return {**run.get("sae", {}), **config}.keys().isdisjoint(("transcode", "activation"))


def completed_by_run(folder: Path) -> bool:
    """Whether a coder's own config lacks something that its run's config says."""
    path, run = folder / "cfg.json", run_config(folder)
    config = read_json(path) if path.is_file() and run else {}
    return bool(config) and any(
        config.get(key, False) != value for key, value in completed(config, run, path).items()
    )


def with_centring_folded(coder: PortableCoder) -> PortableCoder:
    """Turn W (x - b_dec) + b into W x + (b - W b_dec), the form of today's transcoders."""
    tensors = coder.tensors
    weight, bias = tensors["encoder_weight"].double(), tensors["encoder_bias"].double()
    folded = bias - weight @ tensors["decoder_bias"].double()
    return replace(coder, tensors={**tensors, "encoder_bias": folded.to(coder.dtype)})


def hookpoint_of_run(folder: Path) -> str | None:
    """The hookpoint in the run's config beside a coder, if that config names exactly one."""
    path = folder / RUN_CONFIG
    match read_json(path).get("hookpoints") if path.is_file() else None:
        case [str(only)] if is_hookpoint(only):
            return only
        case _:
            return None


def model_of(run: dict[str, Any]) -> str | None:
    """The model that a run's config names."""
    model = run.get("model")
    return model if isinstance(model, str) else None


def with_text_settings(coder: PortableCoder, run: dict[str, Any]) -> PortableCoder:
    """The coder with SAELens' metadata on the text that it was trained on.

    context_size is the run's ctx_len or CONTEXT_SIZE, at most the model's positions. prepend_bos
    says whether the model's tokenizer adds a first token, because sparsify itself adds none.
    """
    if "saelens" in coder.settings:
        return coder
    model = (coder.place.model_name or "").lower()
    length = run.get("ctx_len")
    limits = [count for models, count in POSITIONS.items() if re.search(models, model)]
    length = min([length if type(length) is int and length > 0 else CONTEXT_SIZE, *limits])
    told = {"context_size": length, "prepend_bos": BOS_MODELS.search(model) is not None}
    return replace(coder, settings={**coder.settings, "saelens": told})
