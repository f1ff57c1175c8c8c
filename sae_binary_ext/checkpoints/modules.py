"""Modules of Hugging Face models, as sparsify's hookpoints name them, and the hooks inside a block.

A hookpoint is a path of modules: wrappers of the language model (model, transformer, gpt_neox), a
block (layers.9, h.9), and a part of the block (mlp.down_proj). sparsify's bare models have no
wrapper, models with a language head have one or two. TransformerLens has one name for a part in all
models; HOOK_NAMES holds those of blocks, attention, MLPs and embeddings, PARTS those within.
"""

import re
from dataclasses import dataclass

# Modules that hold the blocks of a language model, in any order and depth.
WRAPPERS = {
    "backbone", "base_model", "decoder", "gpt_neox", "language_model", "model", "module",
    "text_model", "transformer",
}  # fmt: skip
BLOCK = re.compile(r"(?P<blocks>layers|h)\.(?P<layer>\d+)(?:\.(?P<part>.+))?")
TOP_LEVEL = re.compile(r"embed_tokens|embed_in|wte|norm|ln_f|final_layer_norm")
HOOK = re.compile(r"blocks\.\d+\..+|(\w+\.)?hook_\w+")

# Names of models, by how they are built.
LLAMA = r"llama|mistral|qwen-?[23]|smollm"
GEMMA = r"gemma"
NEOX = r"pythia|neox"
GPT2 = r"gpt-?2"
# Models with normalisations after attention and MLP too. gemma-2b is of the first Gemma.
GEMMA_AFTER_1 = r"gemma-?[23](?![\d.]*b)"
OLMO_2 = r"olmo-?2"
ANY = ""
GATED = f"{LLAMA}|{GEMMA}|{OLMO_2}"
PLAIN_MLP = f"{NEOX}|{GPT2}"

# Where transformers keeps the bare model of a model with a language head.
WRAPPER_OF = {GATED: "model", NEOX: "gpt_neox", GPT2: "transformer"}


@dataclass(frozen=True)
class Part:
    """A module inside a block.

    Attributes:
        modules: regular expression of its path in the block.
        hook: TransformerLens' hook of its output, without blocks.9; None where there is none.
        hook_in: of its input; None where there is none.
        models: regular expression that a model's name must contain.
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
    # Its input, all heads' results, has a dimension for heads at TransformerLens' hook.
    Part(LAST_OF_ATTENTION, "attn.o.hook_out"),
    Part(LAST_OF_MLP, "mlp.out.hook_out", "mlp.hook_post"),
    Part(rf"{_MLP}\.(c_fc|dense_h_to_4h|fc_in)", "mlp.hook_pre", "mlp.hook_in"),
    Part(rf"{_MLP}\.gate_proj", "mlp.hook_pre", "mlp.hook_in"),
    Part(rf"{_MLP}\.up_proj", "mlp.hook_pre_linear", "mlp.hook_in"),
    Part(rf"{_MLP}\.act(_fn)?", "mlp.hook_post", "mlp.hook_pre", PLAIN_MLP),
    # Beside a gate, hook_post is the product with it, and the gate's own activation has no hook.
    Part(rf"{_MLP}\.act(_fn)?", None, "mlp.hook_pre", GATED),
    Part(r"ln_1", "ln1.hook_out"),
    Part(r"ln_2", "ln2.hook_out"),
    Part(r"input_layernorm", "ln1.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"post_attention_layernorm", "hook_attn_out", None, f"{GEMMA_AFTER_1}|{OLMO_2}"),
    Part(r"post_attention_layernorm", "ln2.hook_out", models=f"{LLAMA}|{GEMMA}|{NEOX}"),
    Part(r"pre_feedforward_layernorm", "ln2.hook_out", models=GEMMA_AFTER_1),
    Part(r"post_feedforward_layernorm", "hook_mlp_out", None, f"{GEMMA_AFTER_1}|{OLMO_2}"),
    # TransformerLens tells heads apart, where the modules have them side by side.
    Part(rf"{_ATTENTION}\.(q_proj|k_proj|v_proj|c_attn|query_key_value|qkv_proj)", None),
    # A bridge's hooks around the modules are right in any model.
    Part(_MLP, "mlp.hook_out", "mlp.hook_in"),
    Part(_ATTENTION, "attn.hook_out"),
)


@dataclass(frozen=True)
class Module:
    """A hookpoint taken apart.

    Attributes:
        wrappers: what stands before the bare model's name, with its last dot; "" for none.
        name: the bare model's name of it, such as layers.9.mlp.
        layer: the block's number, None outside blocks.
        part: the path within the block, None for the block itself and outside blocks.
    """

    wrappers: str
    name: str
    layer: str | None = None
    part: str | None = None


def parse_module(name: str) -> Module | None:
    """A hookpoint or module name taken apart; None where it is no module of a language model."""
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
    """Whether a model's name contains what a line of a table asks for."""
    if not models:
        return True
    return model_name is not None and re.search(models, model_name.lower()) is not None


def part_of(module: Module, model_name: str | None) -> Part | None:
    """What is known of a module inside a block of such a model."""
    for part in PARTS:
        fits = module.part is not None and re.fullmatch(part.modules, module.part) is not None
        if fits and holds(part.models, model_name):
            return part
    return None


def whole_of(module: Module) -> str | None:
    """The attention or MLP that a last projection ends, whose output is the projection's."""
    if module.part and re.fullmatch(f"{LAST_OF_ATTENTION}|{LAST_OF_MLP}", module.part):
        return module.name.rpartition(".")[0]
    return None


def with_wrapper(module: Module, model_name: str | None) -> str | None:
    """The module's name in a model with a language head; None where that is not known."""
    if module.wrappers:
        return module.wrappers + module.name
    for models, wrapper in WRAPPER_OF.items():
        if holds(models, model_name):
            return f"{wrapper}.{module.name}"
    return None
