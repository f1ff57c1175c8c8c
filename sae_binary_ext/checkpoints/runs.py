"""What sparsify's runs write down beside their coders, in config.json."""

import re
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.hook_names import is_hookpoint
from sae_binary_ext.checkpoints.portable import PortableCoder

RUN_CONFIG = "config.json"
# The folder of the best coders so far, and of a hookpoint's coders of several seeds.
BEST, SEED = "best", re.compile(r"seed\d+")
# SAELens reads text by these where a run does not say how long its rows were. GPT-2 has as many
# positions, and later models have more.
CONTEXT_SIZE = 1024
# Models of fewer positions than sparsify's 2,048, which cut its rows.
POSITIONS = {r"gpt-?2": 1024}
# Models whose tokenizers put a first token before each row that sparsify cuts.
BOS_MODELS = re.compile(r"llama|mistral|mixtral|gemma|deepseek")


def run_config(folder: Path) -> dict[str, Any]:
    """The config of the run that a coder's folder belongs to; {} where there is none.

    Raises:
        CheckpointError: a config.json is no JSON.
    """
    for above in folders_above(folder):
        path = above / RUN_CONFIG
        if path.is_file() and _is_run(config := read_json(path)):
            return config
    return {}


def folders_above(folder: Path) -> list[Path]:
    """Where a run's config may stand: beside a coder, or above its hookpoint's folder."""
    folder = folder.resolve()
    found = [folder, folder.parent]
    while _belongs_to_a_run(folder.name) and _belongs_to_a_run(folder.parent.name):
        folder = folder.parent
        found.append(folder.parent)
    return found


def hookpoint_in(path: PurePath) -> str:
    """The name in a coder's path that may be its hookpoint: a seed's is the folder above."""
    return path.parent.name if SEED.fullmatch(path.name) else path.name


def _belongs_to_a_run(name: str) -> bool:
    return name == BEST or SEED.fullmatch(name) is not None or is_hookpoint(name)


def _is_run(config: dict[str, Any]) -> bool:
    """Whether a config.json is sparsify's, and not a model's."""
    return isinstance(config.get("sae"), dict) or isinstance(config.get("model"), str)


def completed(config: dict[str, Any], run: dict[str, Any], path: Path) -> dict[str, Any]:
    """A coder's config with what its run says of all its coders where its own file is silent.

    Args:
        config: the coder's cfg.json.
        run: as run_config returns it.
        path: of cfg.json, for the error.

    Raises:
        CheckpointError: the run contradicts itself, or the coder's own file.
    """
    of_coders = run.get("sae", {})
    of_coders = of_coders if isinstance(of_coders, dict) else {}
    found = {**of_coders, **config}
    transcode = run.get("transcode")
    if transcode is not None and found.get("transcode", transcode) != transcode:
        raise CheckpointError(
            f"{path}: transcode={found['transcode']!r}, and the run's {RUN_CONFIG} says "
            f"{transcode!r}. Remove the line that is wrong."
        )
    if "transcode" not in found and transcode is not None:
        return {**found, "transcode": transcode}
    if _is_of_2024(found):
        # Only transcoders were trained with a skip connection.
        return {**found, "transcode": found.get("skip_connection") is True}
    return found


def _is_of_2024(config: dict[str, Any]) -> bool:
    """Whether the sparsify of before 12 February 2025 wrote a coder's config.

    That day (commits f02711e and b5e29a0) brought both fields, and transcoders stopped to subtract
    b_dec from their input.
    """
    return config.keys().isdisjoint(("transcode", "activation"))


def completed_by_run(folder: Path) -> bool:
    """Whether a coder's folder holds less than its run's config says of it."""
    path, run = folder / "cfg.json", run_config(folder)
    config = read_json(path) if path.is_file() and run else {}
    return bool(config) and any(
        config.get(key, False) != value for key, value in completed(config, run, path).items()
    )


def centres_transcoders(config: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether the sparsify of a coder's day subtracted a transcoder's b_dec from its input.

    Args:
        config: the coder's own cfg.json.
        run: as run_config returns it.
    """
    of_coders = run.get("sae", {})
    return _is_of_2024({**of_coders, **config} if isinstance(of_coders, dict) else config)


def with_centring_folded(coder: PortableCoder) -> PortableCoder:
    """A coder of W (x - b_dec) + b as one of W x + (b - W b_dec), as today's transcoders are."""
    tensors = coder.tensors
    weight, bias = tensors["encoder_weight"].double(), tensors["encoder_bias"].double()
    folded = bias - weight @ tensors["decoder_bias"].double()
    return replace(coder, tensors={**tensors, "encoder_bias": folded.to(coder.dtype)})


def hookpoint_of_run(folder: Path) -> str | None:
    """The hookpoint of a coder whose run's config stands beside it and names only one."""
    path = folder / RUN_CONFIG
    hookpoints = read_json(path).get("hookpoints") if path.is_file() else None
    only = hookpoints[0] if isinstance(hookpoints, list) and len(hookpoints) == 1 else None
    return only if isinstance(only, str) and is_hookpoint(only) else None


def model_of(run: dict[str, Any]) -> str | None:
    """The model that a run's config names."""
    model = run.get("model")
    return model if isinstance(model, str) else None


def with_text_settings(coder: PortableCoder, run: dict[str, Any]) -> PortableCoder:
    """The coder with what SAELens' metadata tells of its training text.

    context_size is the run's ctx_len, or the model's positions where these are fewer, or 1,024
    where no run says. prepend_bos is what the model's tokenizer does to the rows that sparsify
    cuts: sparsify itself adds no first token.
    """
    if "saelens" in coder.settings:
        return coder
    model = (coder.place.model_name or "").lower()
    length = run.get("ctx_len")
    length = length if type(length) is int and length > 0 else CONTEXT_SIZE
    for models, positions in POSITIONS.items():
        if re.search(models, model):
            length = min(length, positions)
    told = {"context_size": length, "prepend_bos": BOS_MODELS.search(model) is not None}
    return replace(coder, settings={**coder.settings, "saelens": told})
