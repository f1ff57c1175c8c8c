"""Translates the place of a coder between sparsify's names and SAELens'.

sparsify names modules of the bare model (layers.9.mlp). An autoencoder reads a module's output, and
a transcoder reads its input and predicts its output. SAELens names TransformerLens' hooks
(blocks.9.hook_mlp_out), or modules of the whole model (model.layers.9.mlp). A module of the whole
model has wrappers (model, transformer, gpt_neox) before its name in the bare model.
"""

import re
from dataclasses import dataclass, replace
from itertools import product, takewhile
from typing import NamedTuple

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.portable import Place

# Regular expressions that match names of models, one for each structure of models.
LLAMA = r"llama|mistral|qwen-?[23]|smollm"
GEMMA = r"gemma"
NEOX = r"pythia|neox"
GPT2 = r"gpt-?2"
# Models that also normalise after attention and MLP. The first Gemma (gemma-2b) does not.
GEMMA_AFTER_1 = r"gemma-?[23](?![\d.]*b)"
OLMO_2 = r"olmo-?2"
NORM_AFTER = f"{GEMMA_AFTER_1}|{OLMO_2}"
GATED = f"{LLAMA}|{GEMMA}|{OLMO_2}"
PLAIN_MLP = f"{NEOX}|{GPT2}"

# Modules that contain the blocks of a language model, in any order and depth.
WRAPPERS = {
    "backbone", "base_model", "decoder", "gpt_neox", "language_model", "model", "module",
    "text_model", "transformer",
}  # fmt: skip
# Name of the module that holds the bare model, in transformers' models with a language head.
WRAPPER_OF = {GATED: "model", NEOX: "gpt_neox", GPT2: "transformer"}
BLOCK = re.compile(r"(?:layers|h)\.(?P<layer>\d+)(?:\.(?P<part>.+))?")
TOP_LEVEL = re.compile(r"embed_tokens|embed_in|wte|norm|ln_f|final_layer_norm")
HOOK = re.compile(r"blocks\.\d+\..+|(\w+\.)?hook_\w+")
# TransformerBridge's hook of the last normalisation, and names of the module in models.
LAST_NORM, LAST_NORMS = "ln_final.hook_out", ("norm", "ln_f", "final_layer_norm")


@dataclass(frozen=True)
class HookName:
    """A line of the table HOOK_NAMES. {layer} stands for the number of a layer.

    Attributes:
        hookpoint: sparsify's name of a module.
        hook_name: SAELens' name of the module's output.
        hook_name_in: SAELens' name of the module's input, or None if there is no hook.
        models: regular expression. The line fits models whose names contain a match.
        to_saelens_only: the line translates a hookpoint to hooks, but not hooks to a hookpoint.
    """

    hookpoint: str
    hook_name: str
    hook_name_in: str | None = None
    models: str = ""
    to_saelens_only: bool = False


_RESIDUAL = ("blocks.{layer}.hook_resid_post", "blocks.{layer}.hook_resid_pre")
_MLP = ("blocks.{layer}.hook_mlp_out", "blocks.{layer}.mlp.hook_in")
_ATTENTION = "blocks.{layer}.hook_attn_out"
# The hooks that TransformerBridge puts around a module.
_AROUND_MLP = ("blocks.{layer}.mlp.hook_out", "blocks.{layer}.mlp.hook_in")
_AROUND_ATTENTION = "blocks.{layer}.attn.hook_out"
# Modules of a model that SAELens loads as AutoModelForCausalLM.
_MODULES = ("model.layers.{layer}.mlp", "model.layers.{layer}.post_attention_layernorm")

# The first line that fits is used. To add a name: HOOK_NAMES.insert(0, HookName(...)).
HOOK_NAMES = [
    HookName("layers.{layer}", *_RESIDUAL, models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    HookName("layers.{layer}.mlp", *_MLP, models=f"{LLAMA}|{NEOX}"),
    HookName("layers.{layer}.self_attn", _ATTENTION, models=LLAMA),
    HookName("layers.{layer}.attention", _ATTENTION, models=NEOX),
    HookName("embed_tokens", "hook_embed", models=LLAMA),
    HookName("embed_in", "hook_embed", models=NEOX),
    HookName("h.{layer}", *_RESIDUAL, models=GPT2),
    HookName("h.{layer}.mlp", *_MLP, models=GPT2),
    HookName("h.{layer}.attn", _ATTENTION, models=GPT2),
    HookName("wte", "hook_embed", models=GPT2),
    HookName("layers.{layer}.mlp", *_AROUND_MLP, models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    HookName("layers.{layer}.self_attn", _AROUND_ATTENTION, models=f"{LLAMA}|{GEMMA}"),
    HookName("layers.{layer}.attention", _AROUND_ATTENTION, models=NEOX),
    HookName("h.{layer}.mlp", *_AROUND_MLP, models=GPT2),
    HookName("h.{layer}.attn", _AROUND_ATTENTION, models=GPT2),
    # Lines for all other models, whose hooks of attention and MLP are in PARTS.
    HookName("layers.{layer}", *_RESIDUAL, to_saelens_only=True),
    HookName("h.{layer}", *_RESIDUAL, to_saelens_only=True),
    HookName("embed_tokens", "embed.hook_out", to_saelens_only=True),
    HookName("embed_in", "embed.hook_out", to_saelens_only=True),
    HookName("wte", "embed.hook_out", to_saelens_only=True),
    HookName("layers.{layer}.mlp", *_MODULES, models=LLAMA),
]


class Part(NamedTuple):
    """A module inside a block. TransformerLens uses one name for the module in all models.

    Attributes:
        modules: regular expression of the module's path in the block.
        hook, hook_in: hooks of its output and input, without blocks.9, or None if it has none.
        models: regular expression, as in HookName.
    """

    modules: str
    hook: str | None
    hook_in: str | None = None
    models: str = ""


_MLPS = r"(?:mlp|feed_forward)"
_ATTENTIONS = r"(?:self_attn|attention|attn|self_attention)"
LAST_OF_ATTENTION = rf"{_ATTENTIONS}\.(o_proj|out_proj|c_proj|dense)"
LAST_OF_MLP = rf"{_MLPS}\.(down_proj|c_proj|dense_4h_to_h|fc_out)"
# The first part that fits is used. tests/integration/test_hook_names.py compares the activations.
PARTS = (
    # hook_in is None, because TransformerLens' hook has a dimension for heads.
    Part(LAST_OF_ATTENTION, "attn.o.hook_out"),
    Part(LAST_OF_MLP, "mlp.out.hook_out", "mlp.hook_post"),
    Part(rf"{_MLPS}\.(c_fc|dense_h_to_4h|fc_in|gate_proj)", "mlp.hook_pre", "mlp.hook_in"),
    Part(rf"{_MLPS}\.up_proj", "mlp.hook_pre_linear", "mlp.hook_in"),
    Part(rf"{_MLPS}\.act(_fn)?", "mlp.hook_post", "mlp.hook_pre", PLAIN_MLP),
    # In gated MLPs, hook_post is the product with the gate. The gate alone has no hook.
    Part(rf"{_MLPS}\.act(_fn)?", None, "mlp.hook_pre", GATED),
    Part(r"ln_1", "ln1.hook_out"),
    Part(r"ln_2", "ln2.hook_out"),
    Part(r"input_layernorm", "ln1.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"post_attention_layernorm", "hook_attn_out", models=NORM_AFTER),
    Part(r"post_attention_layernorm", "ln2.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"pre_feedforward_layernorm", "ln2.hook_out", models=GEMMA_AFTER_1),
    Part(r"post_feedforward_layernorm", "hook_mlp_out", models=NORM_AFTER),
    # hook is None, because TransformerLens' hooks have a dimension for heads.
    Part(rf"{_ATTENTIONS}\.(q_proj|k_proj|v_proj|c_attn|query_key_value|qkv_proj)", None),
    # TransformerBridge puts hooks around these modules in any model.
    Part(_MLPS, "mlp.hook_out", "mlp.hook_in"),
    Part(_ATTENTIONS, "attn.hook_out"),
)

# Two names of one activation inside a block: TransformerLens' own, then TransformerBridge's.
ALIASES = {
    "hook_resid_pre": "hook_in", "hook_resid_post": "hook_out", "mlp.hook_post": "mlp.out.hook_in",
    "attn.hook_z": "attn.o.hook_in", "attn.o.hook_out": "attn.hook_out",
    "mlp.out.hook_out": "mlp.hook_out",
}  # fmt: skip
# These aliases hold only if no normalisation stands between the module and the residual stream.
ALIASES_OF_LAST = {
    "hook_attn_out": "attn.hook_out", "hook_mlp_out": "mlp.hook_out", "ln2.hook_out": "mlp.hook_in",
}  # fmt: skip


class Module(NamedTuple):
    """The name of a module, split into its wrappers (with the last dot) and its bare model's name.

    A module of a block also has the block's number, and a part: its path within the block.
    """

    wrappers: str
    name: str
    layer: str | None = None
    part: str | None = None


def _parse_module(name: str) -> Module | None:
    """Split a module's name. Returns None if the module is not one of a language model."""
    wrappers = "".join(f"{word}." for word in takewhile(WRAPPERS.__contains__, name.split(".")))
    rest = name.removeprefix(wrappers)
    if (block := BLOCK.fullmatch(rest)) is not None:
        return Module(wrappers, rest, block["layer"], block["part"])
    return Module(wrappers, rest) if TOP_LEVEL.fullmatch(rest) else None


def _holds(models: str, model_name: str | None) -> bool:
    """Whether a line of a table fits a model. An empty `models` fits all models."""
    named = model_name is not None and re.search(models, model_name.lower()) is not None
    return named or not models


def place_in_saelens(place: Place, transcoder: bool) -> Place:
    """The place with SAELens' names, translated from the hookpoint if they are missing.

    CheckpointError if no hook of the model is known for the hookpoint.
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
            "(hookpoint='layers.9', or --hook layers.9 to compare it). If it is right, load with "
            "host='sparsify', or insert a line into sae_binary_ext.checkpoints.HOOK_NAMES."
        )
    return replace(place, hook_name=hooks[0], hook_name_out=hooks[1] if transcoder else None)


def _hooks(hookpoint: str, model_name: str | None, transcoder: bool) -> tuple[str, str] | None:
    """SAELens' names of a coder's input and of its output, or None if the names are not known."""
    module = _parse_module(hookpoint)
    names = [hookpoint] if module is None else [hookpoint, module.name]
    last = f"{LAST_OF_ATTENTION}|{LAST_OF_MLP}"
    if module is not None and not transcoder and re.fullmatch(last, module.part or ""):
        # The last projection of an attention or MLP has the same output as the whole module.
        names.append(module.name.rpartition(".")[0])
    for name, line in product(names, HOOK_NAMES):
        layer = _layer(line.hookpoint, name)
        source = line.hook_name_in if transcoder else line.hook_name
        if layer is not None and source is not None and _holds(line.models, model_name):
            return source.format(layer=layer), line.hook_name.format(layer=layer)
    return None if module is None else _hooks_within(module, model_name, transcoder)


def _hooks_within(
    module: Module, model_name: str | None, transcoder: bool
) -> tuple[str, str] | None:
    """SAELens' names for a part of a block, or for the last normalisation."""
    if module.layer is None:
        last = not transcoder and module.name in LAST_NORMS
        return (LAST_NORM, LAST_NORM) if last else None
    fitting = (part for part in PARTS if re.fullmatch(part.modules, module.part or ""))
    part = next((part for part in fitting if _holds(part.models, model_name)), None)
    if part is None:
        return None
    if part.hook is None and not transcoder:
        # In models that transformers loads, a module's name is SAELens' hook of its output.
        found = [f"{one}." for models, one in WRAPPER_OF.items() if _holds(models, model_name)]
        wrappers = module.wrappers or next(iter(found), "")
        return (wrappers + module.name, wrappers + module.name) if wrappers else None
    source = part.hook_in if transcoder else part.hook
    if source is None or part.hook is None:
        return None
    return f"blocks.{module.layer}.{source}", f"blocks.{module.layer}.{part.hook}"


def model_class_of(hook_name: str | None) -> str | None:
    """SAELens' class of model for a hook, if only one class has the hook."""
    module = None if hook_name is None else _parse_module(hook_name)
    # In models of AutoModelForCausalLM, hooks have transformers' names of modules.
    return "AutoModelForCausalLM" if module is not None and module.wrappers else None


def same_place(first: str, second: str, model_name: str | None) -> bool:
    """Whether two hookpoints, hooks or module names mean the same activation of a model."""
    return _canonical(first, model_name) == _canonical(second, model_name)


def stated_hook(name: str, model_name: str | None) -> str:
    """SAELens' name for a hook, a module or a hookpoint that a user named."""
    return name if model_class_of(name) is not None else _hook_of(name, model_name)


def _hook_of(name: str, model_name: str | None) -> str:
    hooks = None if HOOK.fullmatch(name) else _hooks(name, model_name, transcoder=False)
    return name if hooks is None else hooks[0]


def _canonical(name: str, model_name: str | None) -> str:
    hook = as_output(_hook_of(name, model_name))
    if hook == "hook_embed":
        return "embed.hook_out"
    block = re.match(r"blocks\.\d+\.", hook)
    if block is None:
        return hook
    aliases = ALIASES
    if model_name is not None and not _holds(NORM_AFTER, model_name):
        aliases = ALIASES | ALIASES_OF_LAST
    own = hook.removeprefix(block.group())
    return block.group() + aliases.get(own, own)


def place_in_sparsify(place: Place, transcoder: bool) -> Place:
    """The place with sparsify's name, translated from SAELens' names if it is missing.

    CheckpointError if no line of HOOK_NAMES fits the hook names.
    """
    if place.hookpoint is not None or place.hook_name is None:
        return place
    output = place.hook_name_out if transcoder else as_output(place.hook_name)
    for line in HOOK_NAMES:
        layer = _layer(line.hook_name, output or "")
        if layer is None or line.to_saelens_only or not _holds(line.models, place.model_name):
            continue
        source = (line.hook_name_in or "").format(layer=layer)
        if not transcoder or source == place.hook_name:
            return replace(place, hookpoint=line.hookpoint.format(layer=layer))
    module = _parse_module(place.hook_name)
    if module is not None and not transcoder:
        return replace(place, hookpoint=module.name)
    raise CheckpointError(
        f"hook_name={place.hook_name!r}, hook_name_out={place.hook_name_out!r} of model "
        f"{place.model_name!r}: no hookpoint of sparsify is known for it. Give hookpoint=..., or "
        "insert a line into sae_binary_ext.checkpoints.HOOK_NAMES."
    )


def as_output(hook_name: str) -> str:
    """Rename a block's input to the previous block's output, which is the same activation."""
    for entering, leaving in (("hook_resid_pre", "hook_resid_post"), ("hook_in", "hook_out")):
        layer = _layer(f"blocks.{{layer}}.{entering}", hook_name)
        if layer and int(layer):
            return f"blocks.{int(layer) - 1}.{leaving}"
    return hook_name


def is_hookpoint(name: str) -> bool:
    """Whether a name is a module of a language model, or fits a line of HOOK_NAMES."""
    known = any(_layer(line.hookpoint, name) is not None for line in HOOK_NAMES)
    return known or _parse_module(name) is not None


def is_place(name: str) -> bool:
    """Whether a name is a hookpoint or a hook of TransformerLens."""
    return is_hookpoint(name) or HOOK.fullmatch(name) is not None


def _layer(template: str, name: str) -> str | None:
    """The layer in a name. "" if the template has no {layer}, None if the name does not fit it."""
    pattern = re.escape(template).replace(re.escape("{layer}"), r"(?P<layer>\d+)")
    match = re.fullmatch(pattern, name)
    return None if match is None else match.groupdict().get("layer", "")
