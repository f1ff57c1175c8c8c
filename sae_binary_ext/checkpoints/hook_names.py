"""Where a coder reads, in sparsify's words and in SAELens'.

sparsify names modules of the bare model (layers.9.mlp): an autoencoder reads a module's output, a
transcoder its input and output. SAELens names TransformerLens' hooks (blocks.9.hook_mlp_out), or
modules of the whole model (model.layers.9.mlp).
"""

import re
from dataclasses import dataclass, replace

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.portable import Place

# Names of models, by how they are built. After the normalisations that follow attention and MLP in
# some models, TransformerLens' hook_mlp_out and hook_attn_out are no module's output.
LLAMA = r"llama|mistral|qwen-?[23]|smollm"
GEMMA = r"gemma"
NEOX = r"pythia|neox"
GPT2 = r"gpt-?2"


@dataclass(frozen=True)
class HookName:
    """A line of the table; {layer} stands for a layer's number.

    Attributes:
        hookpoint: sparsify's name of a module.
        hook_name: SAELens' name of the module's output.
        hook_name_in: SAELens' name of the module's input; None where there is no such hook.
        models: regular expression that a model's name must contain for the line to hold.
        to_saelens_only: the line holds for any model that has the hookpoint. Which hookpoint a
            model has cannot be told by it.
    """

    hookpoint: str
    hook_name: str
    hook_name_in: str | None = None
    models: str = ""
    to_saelens_only: bool = False


def _module(hookpoint: str, block: str, models: str, **further: bool) -> HookName:
    """The line of a module inside a block, by the hooks that TransformerBridge puts around it."""
    return HookName(
        f"{hookpoint}",
        f"blocks.{{layer}}.{block}.hook_out",
        f"blocks.{{layer}}.{block}.hook_in" if block == "mlp" else None,
        models,
        **further,
    )


_RESIDUAL = ("blocks.{layer}.hook_resid_post", "blocks.{layer}.hook_resid_pre")
_MLP = ("blocks.{layer}.hook_mlp_out", "blocks.{layer}.mlp.hook_in")

# The first line that fits decides. To teach it a name: HOOK_NAMES.insert(0, HookName(...)).
HOOK_NAMES = [
    HookName("layers.{layer}", *_RESIDUAL, models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    HookName("layers.{layer}.mlp", *_MLP, models=f"{LLAMA}|{NEOX}"),
    HookName("layers.{layer}.self_attn", "blocks.{layer}.hook_attn_out", models=LLAMA),
    HookName("layers.{layer}.attention", "blocks.{layer}.hook_attn_out", models=NEOX),
    HookName("embed_tokens", "hook_embed", models=LLAMA),
    HookName("embed_in", "hook_embed", models=NEOX),
    HookName("h.{layer}", *_RESIDUAL, models=GPT2),
    HookName("h.{layer}.mlp", *_MLP, models=GPT2),
    HookName("h.{layer}.attn", "blocks.{layer}.hook_attn_out", models=GPT2),
    HookName("wte", "hook_embed", models=GPT2),
    _module("layers.{layer}.mlp", "mlp", f"{LLAMA}|{GEMMA}|{NEOX}"),
    _module("layers.{layer}.self_attn", "attn", f"{LLAMA}|{GEMMA}"),
    _module("layers.{layer}.attention", "attn", NEOX),
    _module("h.{layer}.mlp", "mlp", GPT2),
    _module("h.{layer}.attn", "attn", GPT2),
    # Of models that no line above knows.
    HookName("layers.{layer}", *_RESIDUAL, to_saelens_only=True),
    HookName("h.{layer}", *_RESIDUAL, to_saelens_only=True),
    _module("layers.{layer}.mlp", "mlp", "", to_saelens_only=True),
    _module("h.{layer}.mlp", "mlp", "", to_saelens_only=True),
    _module("layers.{layer}.self_attn", "attn", "", to_saelens_only=True),
    _module("layers.{layer}.attention", "attn", "", to_saelens_only=True),
    _module("h.{layer}.attn", "attn", "", to_saelens_only=True),
    HookName("embed_tokens", "embed.hook_out", to_saelens_only=True),
    # Modules of a model that SAELens loads as AutoModelForCausalLM.
    HookName("layers.{layer}", "model.layers.{layer}"),
    HookName(
        "layers.{layer}.mlp",
        "model.layers.{layer}.mlp",
        "model.layers.{layer}.post_attention_layernorm",
        models=LLAMA,
    ),
    HookName("layers.{layer}.mlp", "model.layers.{layer}.mlp"),
    HookName("layers.{layer}.self_attn", "model.layers.{layer}.self_attn"),
    HookName("embed_tokens", "model.embed_tokens"),
    HookName("h.{layer}", "transformer.h.{layer}"),
    HookName("h.{layer}.mlp", "transformer.h.{layer}.mlp"),
]


def place_in_saelens(place: Place, transcoder: bool) -> Place:
    """The place with SAELens' names, translated from the hookpoint where they are missing.

    Raises:
        CheckpointError: no line of HOOK_NAMES holds for the hookpoint.
    """
    named = place.hook_name is not None and (not transcoder or place.hook_name_out is not None)
    if named or place.hookpoint is None:
        return place
    for line in HOOK_NAMES:
        layer = _layer(line.hookpoint, place.hookpoint)
        source = line.hook_name_in if transcoder else line.hook_name
        if layer is None or source is None or not _holds(line, place.model_name):
            continue
        return replace(
            place,
            hook_name=source.format(layer=layer),
            hook_name_out=line.hook_name.format(layer=layer) if transcoder else None,
        )
    raise CheckpointError(
        f"hookpoint={place.hookpoint!r} of model {place.model_name!r}: no SAELens name is known "
        f"for {'its input and output' if transcoder else 'it'}. Say where the coder belongs "
        "(hookpoint='layers.9'), or insert a line into sae_binary_ext.checkpoints.HOOK_NAMES."
    )


def place_in_sparsify(place: Place, transcoder: bool) -> Place:
    """The place with sparsify's name, translated from SAELens' where it is missing.

    Raises:
        CheckpointError: no line of HOOK_NAMES holds for the hook names.
    """
    if place.hookpoint is not None or place.hook_name is None:
        return place
    output = place.hook_name_out if transcoder else as_output(place.hook_name)
    for line in HOOK_NAMES:
        if line.to_saelens_only or not _holds(line, place.model_name):
            continue
        layer = _layer(line.hook_name, output or "")
        if layer is None:
            continue
        source = (line.hook_name_in or "").format(layer=layer)
        if not transcoder or source == place.hook_name:
            return replace(place, hookpoint=line.hookpoint.format(layer=layer))
    raise CheckpointError(
        f"hook_name={place.hook_name!r}, hook_name_out={place.hook_name_out!r} of model "
        f"{place.model_name!r}: no hookpoint of sparsify is known for it. Give hookpoint=..., or "
        "insert a line into sae_binary_ext.checkpoints.HOOK_NAMES."
    )


def as_output(hook_name: str) -> str:
    """What enters a block as what left the one before, which is the same and a module's output."""
    for entering, leaving in (("hook_resid_pre", "hook_resid_post"), ("hook_in", "hook_out")):
        layer = _layer(f"blocks.{{layer}}.{entering}", hook_name)
        if layer and int(layer):
            return f"blocks.{int(layer) - 1}.{leaving}"
    return hook_name


def is_hookpoint(name: str) -> bool:
    """Whether a folder's name is a hookpoint that some line of HOOK_NAMES knows."""
    return any(_layer(line.hookpoint, name) is not None for line in HOOK_NAMES)


def _layer(template: str, name: str) -> str | None:
    """What stands for {layer} in a name, "" where the template has none; None: no match."""
    pattern = re.escape(template).replace(re.escape("{layer}"), r"(?P<layer>\d+)")
    match = re.fullmatch(pattern, name)
    return None if match is None else match.groupdict().get("layer", "")


def _holds(line: HookName, model_name: str | None) -> bool:
    if not line.models:
        return True
    return model_name is not None and re.search(line.models, model_name.lower()) is not None
