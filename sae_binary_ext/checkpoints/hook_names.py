"""Translates the place of a coder between sparsify's names and SAELens'.

sparsify names modules of the bare model (layers.9.mlp). An autoencoder reads a module's output, and
a transcoder reads its input and predicts its output. SAELens names TransformerLens' hooks
(blocks.9.hook_mlp_out), or modules of the whole model (model.layers.9.mlp).
"""

import re
from dataclasses import dataclass, replace

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.modules import (
    GEMMA,
    GEMMA_AFTER_1,
    GPT2,
    HOOK,
    LLAMA,
    NEOX,
    OLMO_2,
    Module,
    holds,
    parse_module,
    part_of,
    whole_of,
    with_wrapper,
)
from sae_binary_ext.checkpoints.portable import Place

# TransformerBridge's hook of the last normalisation.
LAST_NORM = "ln_final.hook_out"
# SAELens' name for models whose hooks are modules, by transformers' names.
MODULES_CLASS = "AutoModelForCausalLM"


@dataclass(frozen=True)
class HookName:
    """A line of the table. {layer} stands for the number of a layer.

    Attributes:
        hookpoint: sparsify's name of a module.
        hook_name: SAELens' name of the module's output.
        hook_name_in: SAELens' name of the module's input. None if there is no such hook.
        models: regular expression. The line holds for models whose name contains a match.
        to_saelens_only: the line translates a hookpoint to hooks, but not hooks to a hookpoint.
    """

    hookpoint: str
    hook_name: str
    hook_name_in: str | None = None
    models: str = ""
    to_saelens_only: bool = False


def _module(hookpoint: str, block: str, models: str) -> HookName:
    """A line for a module inside a block, with the hooks that TransformerBridge puts around it."""
    return HookName(
        hookpoint,
        f"blocks.{{layer}}.{block}.hook_out",
        f"blocks.{{layer}}.{block}.hook_in" if block == "mlp" else None,
        models,
    )


_RESIDUAL = ("blocks.{layer}.hook_resid_post", "blocks.{layer}.hook_resid_pre")
_MLP = ("blocks.{layer}.hook_mlp_out", "blocks.{layer}.mlp.hook_in")

# The first line that fits is taken. To add a name: HOOK_NAMES.insert(0, HookName(...)).
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
    # For other models. PARTS in modules.py has their attention and MLP.
    HookName("layers.{layer}", *_RESIDUAL, to_saelens_only=True),
    HookName("h.{layer}", *_RESIDUAL, to_saelens_only=True),
    HookName("embed_tokens", "embed.hook_out", to_saelens_only=True),
    HookName("embed_in", "embed.hook_out", to_saelens_only=True),
    HookName("wte", "embed.hook_out", to_saelens_only=True),
    # Modules of a model that SAELens loads as AutoModelForCausalLM.
    HookName(
        "layers.{layer}.mlp",
        "model.layers.{layer}.mlp",
        "model.layers.{layer}.post_attention_layernorm",
        models=LLAMA,
    ),
]

# Two names of one activation inside a block: TransformerLens' own, then TransformerBridge's.
ALIASES = {
    "hook_resid_pre": "hook_in",
    "hook_resid_post": "hook_out",
    "mlp.hook_post": "mlp.out.hook_in",
    "attn.hook_z": "attn.o.hook_in",
    "attn.o.hook_out": "attn.hook_out",
    "mlp.out.hook_out": "mlp.hook_out",
}
# These hold only if no normalisation stands between the module and the residual stream.
ALIASES_OF_LAST = {
    "hook_attn_out": "attn.hook_out",
    "hook_mlp_out": "mlp.hook_out",
    "ln2.hook_out": "mlp.hook_in",
}


def place_in_saelens(place: Place, transcoder: bool) -> Place:
    """The place with SAELens' names, translated from the hookpoint if they are missing.

    Raises:
        CheckpointError: no hook of such a model is known for the hookpoint.
    """
    named = place.hook_name is not None and (not transcoder or place.hook_name_out is not None)
    if named or place.hookpoint is None:
        return place
    hooks = _hooks(place.hookpoint, place.model_name, transcoder)
    if hooks is None:
        what = "its input and output" if transcoder else "it"
        raise CheckpointError(
            f"hookpoint={place.hookpoint!r} of model {place.model_name!r}: no SAELens name is "
            f"known for {what}. If the name is wrong, say where the coder belongs "
            "(hookpoint='layers.9', or --hook layers.9 to compare it). If it is right, load the "
            "coder with host='sparsify', or insert a line into "
            "sae_binary_ext.checkpoints.HOOK_NAMES."
        )
    return replace(place, hook_name=hooks[0], hook_name_out=hooks[1] if transcoder else None)


def _hooks(hookpoint: str, model_name: str | None, transcoder: bool) -> tuple[str, str] | None:
    """SAELens' names of a coder's input and of its output."""
    module = parse_module(hookpoint)
    names = [hookpoint] if module is None else [hookpoint, module.name]
    if module is not None and not transcoder and (whole := whole_of(module)) is not None:
        names.append(whole)
    for name in names:
        if (hooks := _hooks_by_table(name, model_name, transcoder)) is not None:
            return hooks
    return None if module is None else _hooks_within(module, model_name, transcoder)


def _hooks_by_table(
    hookpoint: str, model_name: str | None, transcoder: bool
) -> tuple[str, str] | None:
    for line in HOOK_NAMES:
        layer = _layer(line.hookpoint, hookpoint)
        source = line.hook_name_in if transcoder else line.hook_name
        if layer is not None and source is not None and holds(line.models, model_name):
            return source.format(layer=layer), line.hook_name.format(layer=layer)
    return None


def _hooks_within(
    module: Module, model_name: str | None, transcoder: bool
) -> tuple[str, str] | None:
    """SAELens' names for a part of a block, or for the last normalisation."""
    if module.layer is None:
        last = not transcoder and module.name in ("norm", "ln_f", "final_layer_norm")
        return (LAST_NORM, LAST_NORM) if last else None
    part = part_of(module, model_name)
    if part is None:
        return None
    if part.hook is None:
        # In models that transformers loads, the module's name is also SAELens' hook of its output.
        name = None if transcoder else with_wrapper(module, model_name)
        return None if name is None else (name, name)
    source = part.hook_in if transcoder else part.hook
    if source is None:
        return None
    return f"blocks.{module.layer}.{source}", f"blocks.{module.layer}.{part.hook}"


def model_class_of(hook_name: str | None) -> str | None:
    """SAELens' class of model for a hook, if only one class has the hook."""
    module = None if hook_name is None else parse_module(hook_name)
    return MODULES_CLASS if module is not None and module.wrappers else None


def same_place(first: str, second: str, model_name: str | None) -> bool:
    """Whether two hookpoints, hooks or module names mean the same activation of a model."""
    return _canonical(first, model_name) == _canonical(second, model_name)


def stated_hook(name: str, model_name: str | None) -> str:
    """SAELens' name for a hook, a module or a hookpoint that a user named."""
    return name if model_class_of(name) is not None else _hook_of(name, model_name)


def _hook_of(name: str, model_name: str | None) -> str:
    if HOOK.fullmatch(name):
        return name
    hooks = _hooks(name, model_name, transcoder=False)
    return name if hooks is None else hooks[0]


def _canonical(name: str, model_name: str | None) -> str:
    hook = as_output(_hook_of(name, model_name))
    if hook == "hook_embed":
        return "embed.hook_out"
    layer = re.match(r"blocks\.\d+\.", hook)
    head = "" if layer is None else layer.group()
    name = hook.removeprefix(head)
    aliases = ALIASES
    if model_name is not None and not holds(f"{GEMMA_AFTER_1}|{OLMO_2}", model_name):
        aliases = ALIASES | ALIASES_OF_LAST
    return head + aliases.get(name, name) if head else hook


def place_in_sparsify(place: Place, transcoder: bool) -> Place:
    """The place with sparsify's name, translated from SAELens' names if it is missing.

    Raises:
        CheckpointError: no line of HOOK_NAMES fits the hook names.
    """
    if place.hookpoint is not None or place.hook_name is None:
        return place
    output = place.hook_name_out if transcoder else as_output(place.hook_name)
    for line in HOOK_NAMES:
        if line.to_saelens_only or not holds(line.models, place.model_name):
            continue
        layer = _layer(line.hook_name, output or "")
        if layer is None:
            continue
        source = (line.hook_name_in or "").format(layer=layer)
        if not transcoder or source == place.hook_name:
            return replace(place, hookpoint=line.hookpoint.format(layer=layer))
    module = parse_module(place.hook_name)
    if module is not None and not transcoder:
        return replace(place, hookpoint=module.name)
    raise CheckpointError(
        f"hook_name={place.hook_name!r}, hook_name_out={place.hook_name_out!r} of model "
        f"{place.model_name!r}: no hookpoint of sparsify is known for it. Give hookpoint=..., or "
        "insert a line into sae_binary_ext.checkpoints.HOOK_NAMES."
    )


def as_output(hook_name: str) -> str:
    """For the input of a block, the name of the same activation as the previous block's output."""
    for entering, leaving in (("hook_resid_pre", "hook_resid_post"), ("hook_in", "hook_out")):
        layer = _layer(f"blocks.{{layer}}.{entering}", hook_name)
        if layer and int(layer):
            return f"blocks.{int(layer) - 1}.{leaving}"
    return hook_name


def is_hookpoint(name: str) -> bool:
    """Whether a name is a module of a language model, or fits a line of HOOK_NAMES."""
    known = any(_layer(line.hookpoint, name) is not None for line in HOOK_NAMES)
    return known or parse_module(name) is not None


def is_place(name: str) -> bool:
    """Whether a name is a hookpoint or a hook of TransformerLens."""
    return is_hookpoint(name) or HOOK.fullmatch(name) is not None


def _layer(template: str, name: str) -> str | None:
    """The layer in a name. "" if the template has no {layer}, None if they do not match."""
    pattern = re.escape(template).replace(re.escape("{layer}"), r"(?P<layer>\d+)")
    match = re.fullmatch(pattern, name)
    return None if match is None else match.groupdict().get("layer", "")
