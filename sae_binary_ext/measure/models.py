"""The model that coders are measured in."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
from sae_binary_ext.measure.candidates import Candidate, common_model
from sae_binary_ext.saelens.hook_views import HookView
from sae_binary_ext.saelens.hooked_model import (
    BRIDGES,
    HOOKED_TRANSFORMER,
    decisive_settings,
    known_to_hooked_transformer,
    load_hooked_model,
    positions_of,
)
from sae_binary_ext.saelens.splice import HookedModel

logger = logging.getLogger(__name__)

PLAIN_MODEL = "AutoModelForCausalLM"
# Hooks at which an unprocessed HookedTransformer and a TransformerBridge have the same activations.
SAME_HOOKS = re.compile(
    r"hook_embed|blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_(mlp|attn)_out|mlp\.hook_(in|pre|post)"
    r"|attn\.hook_[qkvz])"
)
# Of these, two depend on the model. HookedTransformer applies a norm after attention or MLP before
# the hook, a bridge after it. Hooks of norms agree for LayerNorm only.
WITHOUT_POST_NORM = re.compile(r"blocks\.\d+\.hook_(mlp|attn)_out")
OF_LAYER_NORM = re.compile(r"blocks\.\d+\.ln[12]\.hook_(normalized|scale)")


def open_model(
    candidates: list[Candidate], model: str | None, folder: Path, device: str
) -> tuple[str, HookedModel, PreTrainedTokenizerBase]:
    """Load the hooked model of some coders, as their files say.

    Args:
        candidates: the coders.
        model: Hub id or folder; None takes the model that the coders' files name. SmolLM2 then
            comes from the installed package.
        folder: SmolLM2's files are written into its subfolder "model".
        device: of the model.

    Returns:
        The model's name, the model and its tokenizer.

    Raises:
        ValueError: the coders need several models, or one model loaded in different ways.
    """
    name = common_model(candidates, model)
    settings = _common_settings(candidates)
    embedded = model is None and name == MODEL_NAME
    path = str(export_smollm2(folder / "model")) if embedded else name
    hooked: Any = load_hooked_model(_common_class(candidates, path), path, device, settings)
    if isinstance(hooked, TransformerBridge):
        _check_same_in_bridge(candidates, hooked)
    return name, hooked, cast(PreTrainedTokenizerBase, hooked.tokenizer)


def settings_of_model(candidate: Candidate) -> dict[str, Any]:
    """The settings in a coder's files for loading its model, without defaults."""
    try:
        return decisive_settings(candidate.coder.cfg.metadata.model_from_pretrained_kwargs)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error


def fitting_context(model: HookedModel, context_size: int) -> int:
    """context_size, or the number of the model's positions if that is smaller; logs the change."""
    positions = positions_of(model)
    if positions is None or positions >= context_size:
        return context_size
    logger.warning(
        "context_size=%d: the model has %d positions, so rows have that many tokens.",
        context_size,
        positions,
    )
    return positions


def _common_settings(candidates: list[Candidate]) -> dict[str, Any]:
    """Settings for the model of all coders; raises ValueError if they differ."""
    first, *others = candidates
    settings = settings_of_model(first)
    for other in others:
        if (own := settings_of_model(other)) != settings:
            raise ValueError(
                f"{first.name} and {other.name} need different models: the files of the first say "
                f"to load it with {told(settings)}, those of the second with {told(own)} "
                "(model_from_pretrained_kwargs). Measure them one after the other."
            )
    return settings


def told(settings: Mapping[str, Any]) -> str:
    """Settings of a model for a message."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"


def _common_class(candidates: list[Candidate], path: str) -> str | None:
    """The class of hooked model for all coders; None for a bridge, which can replace most."""
    classes = {_class_of(each): each.name for each in candidates}
    if len(classes) > 1:
        if others := set(classes) - {None, HOOKED_TRANSFORMER, PLAIN_MODEL}:
            raise ValueError(
                f"coders: were trained with models of different classes, {classes}, and no other "
                f"class can replace {sorted(map(str, others))}. Measure them one after the other."
            )
        return None
    (only,) = classes
    if only == HOOKED_TRANSFORMER and not known_to_hooked_transformer(path):
        logger.info("%s: TransformerLens has no model of this name, so a bridge reads it.", path)
        return None
    return only


def _class_of(candidate: Candidate) -> str | None:
    name = candidate.coder.cfg.metadata.model_class_name
    return None if name in BRIDGES else name


def _check_same_in_bridge(candidates: list[Candidate], bridge: TransformerBridge) -> None:
    """Raise ValueError if a HookedTransformer's coder would read other activations in a bridge."""
    names = cast(Mapping[str, Any], bridge.hook_dict)
    has_post_norms = any(re.search(r"\.ln[12]_post\.", name) for name in names)
    layer_norm = str(bridge.cfg.normalization_type).startswith("LN")
    for candidate in candidates:
        if _class_of(candidate) != HOOKED_TRANSFORMER:
            continue
        for hook in (candidate.site.hook_name, candidate.site.hook_name_out):
            name = HookView.of(hook).hook_name
            same = SAME_HOOKS.fullmatch(name) or (layer_norm and OF_LAYER_NORM.fullmatch(name))
            if not same or (has_post_norms and WITHOUT_POST_NORM.fullmatch(name)):
                raise ValueError(
                    f"{candidate.name}: was trained at {hook} of a {HOOKED_TRANSFORMER}, and a "
                    "TransformerBridge may have other activations there. Measure coders of "
                    f"{HOOKED_TRANSFORMER} alone, and name the model as TransformerLens does."
                )
