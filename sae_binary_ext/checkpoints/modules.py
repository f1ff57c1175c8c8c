"""Modules of Hugging Face models by sparsify's hookpoints, and the hooks inside a block.

A hookpoint is a path of modules: wrappers of the language model (model, transformer, gpt_neox), a
block (layers.9, h.9), and a part of the block (mlp.down_proj). sparsify's bare models have no
wrapper. Models with a language head have one or two. TransformerLens uses one name in all models:
HOOK_NAMES has its names for blocks, attention, MLPs and embeddings, and PARTS for their parts.
"""

import re
from dataclasses import dataclass

# Modules that contain the blocks of a language model, in any order and depth.
WRAPPERS = {
    "backbone", "base_model", "decoder", "gpt_neox", "language_model", "model", "module",
    "text_model", "transformer",
}  # fmt: skip
BLOCK = re.compile(r"(?P<blocks>layers|h)\.(?P<layer>\d+)(?:\.(?P<part>.+))?")
TOP_LEVEL = re.compile(r"embed_tokens|embed_in|wte|norm|ln_f|final_layer_norm")
HOOK = re.compile(r"blocks\.\d+\..+|(\w+\.)?hook_\w+")

# Regular expressions of the names of models, by their structure.
LLAMA = r"llama|mistral|qwen-?[23]|smollm"
GEMMA = r"gemma"
NEOX = r"pythia|neox"
GPT2 = r"gpt-?2"
# Models with normalisations after attention and MLP too. gemma-2b belongs to the first Gemma.
GEMMA_AFTER_1 = r"gemma-?[23](?![\d.]*b)"
OLMO_2 = r"olmo-?2"
ANY = ""
GATED = f"{LLAMA}|{GEMMA}|{OLMO_2}"
PLAIN_MLP = f"{NEOX}|{GPT2}"

# The module that holds the bare model, in transformers' models with a language head.
WRAPPER_OF = {GATED: "model", NEOX: "gpt_neox", GPT2: "transformer"}


@dataclass(frozen=True)
class Part:
    """A module inside a block.

    Attributes:
        modules: regular expression of its path in the block.
        hook: TransformerLens' hook of its output, without blocks.9. None if there is none.
        hook_in: TransformerLens' hook of its input. None if there is none.
        models: regular expression. The line holds for models whose name contains a match.
    """

    modules: str
    hook: str | None
    hook_in: str | None = None
    models: str = ANY


_MLP = r"(?:mlp|feed_forward)"
_ATTENTION = r"(?:self_attn|attention|attn|self_attention)"
LAST_OF_ATTENTION = rf"{_ATTENTION}\.(o_proj|out_proj|c_proj|dense)"
LAST_OF_MLP = rf"{_MLP}\.(down_proj|c_proj|dense_4h_to_h|fc_out)"
# tests/integration/test_hook_names.py compares the activations themselves.
PARTS = (
    # No hook for the input: at TransformerLens' hook it has a dimension for heads.
    Part(LAST_OF_ATTENTION, "attn.o.hook_out"),
    Part(LAST_OF_MLP, "mlp.out.hook_out", "mlp.hook_post"),
    Part(rf"{_MLP}\.(c_fc|dense_h_to_4h|fc_in)", "mlp.hook_pre", "mlp.hook_in"),
    Part(rf"{_MLP}\.gate_proj", "mlp.hook_pre", "mlp.hook_in"),
    Part(rf"{_MLP}\.up_proj", "mlp.hook_pre_linear", "mlp.hook_in"),
    Part(rf"{_MLP}\.act(_fn)?", "mlp.hook_post", "mlp.hook_pre", PLAIN_MLP),
    # In gated MLPs, hook_post is the product with the gate. The gate's activation has no hook.
    Part(rf"{_MLP}\.act(_fn)?", None, "mlp.hook_pre", GATED),
    Part(r"ln_1", "ln1.hook_out"),
    Part(r"ln_2", "ln2.hook_out"),
    Part(r"input_layernorm", "ln1.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"post_attention_layernorm", "hook_attn_out", None, f"{GEMMA_AFTER_1}|{OLMO_2}"),
    Part(r"post_attention_layernorm", "ln2.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"pre_feedforward_layernorm", "ln2.hook_out", models=GEMMA_AFTER_1),
    Part(r"post_feedforward_layernorm", "hook_mlp_out", None, f"{GEMMA_AFTER_1}|{OLMO_2}"),
    # No hook: TransformerLens gives heads a dimension of their own.
    Part(rf"{_ATTENTION}\.(q_proj|k_proj|v_proj|c_attn|query_key_value|qkv_proj)", None),
    # TransformerBridge's hooks around a module hold in any model.
    Part(_MLP, "mlp.hook_out", "mlp.hook_in"),
    Part(_ATTENTION, "attn.hook_out"),
)


@dataclass(frozen=True)
class Module:
    """A hookpoint, split into its parts.

    Attributes:
        wrappers: the part before the bare model's name, with its last dot. "" if there is none.
        name: the name in the bare model, such as layers.9.mlp.
        layer: the block's number. None outside blocks.
        part: the path within the block. None for the block itself and outside blocks.
    """

    wrappers: str
    name: str
    layer: str | None = None
    part: str | None = None


def parse_module(name: str) -> Module | None:
    """Split a hookpoint or module name. None if it is not a module of a language model."""
    words = name.split(".")
    count = 0
    while count < len(words) and words[count] in WRAPPERS:
        count += 1
    rest = ".".join(words[count:])
    wrappers = ".".join([*words[:count], ""]) if count else ""
    block = BLOCK.fullmatch(rest)
    if block is not None:
        return Module(wrappers, rest, block["layer"], block["part"])
    return Module(wrappers, rest) if TOP_LEVEL.fullmatch(rest) else None


def holds(models: str, model_name: str | None) -> bool:
    """Whether a line of a table holds for a model. An empty `models` holds for all."""
    named = model_name is not None and re.search(models, model_name.lower()) is not None
    return named or not models


def part_of(module: Module, model_name: str | None) -> Part | None:
    """The first of PARTS that describes a module inside a block of a model."""
    if module.part is None:
        return None
    fitting = (part for part in PARTS if re.fullmatch(part.modules, module.part or ""))
    return next((part for part in fitting if holds(part.models, model_name)), None)


def whole_of(module: Module) -> str | None:
    """If a module is the last projection of an attention or MLP, the name of that attention or MLP.

    Both have the same output.
    """
    if module.part and re.fullmatch(f"{LAST_OF_ATTENTION}|{LAST_OF_MLP}", module.part):
        return module.name.rpartition(".")[0]
    return None


def with_wrapper(module: Module, model_name: str | None) -> str | None:
    """The module's name in a model with a language head. None if it is not known."""
    if module.wrappers:
        return module.wrappers + module.name
    wrappers = (wrapper for models, wrapper in WRAPPER_OF.items() if holds(models, model_name))
    return next((f"{wrapper}.{module.name}" for wrapper in wrappers), None)
