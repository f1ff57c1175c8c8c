"""Sizes of language models: a small table, a config.json on disk, or sizes that a user gives."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names of sizes in the configs of transformers, and GPT-2's names for them.
_NEEDED = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
_NEEDED_TOO = ("vocab_size", "model_type")
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_head": "num_attention_heads",
}


@dataclass(frozen=True)
class Family:
    """Names of modules in models of one type.

    Attributes:
        layers: the list of layers, as SAELens names it. sparsify leaves out the first part.
        mlp_input: module of a layer whose output is the MLP's input.
        gated: whether the MLP has a gate, and so three matrices instead of two.
        positions: whether the model has a table of learned positions.
    """

    layers: str = "model.layers"
    mlp_input: str = "post_attention_layernorm"
    gated: bool = True
    positions: bool = False


FAMILIES = {
    "llama": Family(),
    "qwen3": Family(),
    "gemma2": Family(mlp_input="pre_feedforward_layernorm"),
    "gpt2": Family("transformer.h", "ln_2", gated=False, positions=True),
}


def _known(model_type: str, dtype: str, *sizes: int, **more: Any) -> dict[str, Any]:
    names = (*_NEEDED, "vocab_size")
    named = dict(zip(names, sizes, strict=True))
    return {"model_type": model_type, "torch_dtype": dtype, "tie_word_embeddings": True} | (
        named | more
    )


# Sizes and dtype of the published weights, by Hub id.
MODELS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _known(
        "llama", "bfloat16", 576, 30, 1536, 9, 49152, num_key_value_heads=3
    ),
    "openai-community/gpt2": _known(
        "gpt2", "float32", 768, 12, 3072, 12, 50257, max_position_embeddings=1024
    ),
    "meta-llama/Llama-3.2-1B": _known(
        "llama", "bfloat16", 2048, 16, 8192, 32, 128256, num_key_value_heads=8
    ),
    "google/gemma-2-2b": _known(
        "gemma2", "float32", 2304, 26, 9216, 8, 256000, num_key_value_heads=4, head_dim=256
    ),
    "Qwen/Qwen3-1.7B": _known(
        "qwen3", "bfloat16", 2048, 28, 6144, 16, 151936, num_key_value_heads=8, head_dim=128
    ),
    "meta-llama/Llama-3.1-8B": _known(
        "llama", "bfloat16", 4096, 32, 14336, 32, 128256,
        num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip
MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"] = MODELS["HuggingFaceTB/SmolLM2-135M"]
MODELS["gpt2"] = MODELS["openai-community/gpt2"]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a language model.

    Attributes:
        width: numbers in a token's hidden state.
        attention_width, key_width: width of all queries, and of all keys or values.
        dtype: number format of the model's file.
        tied: whether the output layer shares the token table's weights.
        positions: rows of the table of learned positions, 0 without one.
    """

    family: Family
    width: int
    layers: int
    mlp_width: int
    attention_width: int
    key_width: int
    vocabulary: int
    dtype: str = "float32"
    tied: bool = True
    positions: int = 0

    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer; norms and biases are left out."""
        attention = 2 * self.width * (self.attention_width + self.key_width)
        return attention + (2 + self.family.gated) * self.width * self.mlp_width

    def weights(self, with_output_layer: bool) -> int:
        """Numbers in all matrices of the model, with or without the layer that gives logits."""
        table = self.width * (self.vocabulary + self.positions)
        output = self.width * self.vocabulary * (with_output_layer and not self.tied)
        return table + self.layers * self.layer_weights() + output


def find_sizes(model: str, given: Iterable[str] = ()) -> ModelSizes:
    """Sizes of a model.

    Args:
        model: a name of MODELS, a folder with a config.json, or a Hub id in the local cache.
        given: sizes as "hidden_size=2048". They take the place of sizes that were found.

    Raises:
        ValueError: a size is not known, or is not a number; or the model's type is not known.
    """
    fields = _fields_of(model) | dict(_parsed(size) for size in given)
    missing = [name for name in (*_NEEDED, *_NEEDED_TOO) if name not in fields]
    if missing:
        wanted = " ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"model={model!r}: no config.json of it is on this disk, and it is none of "
            f"{', '.join(MODELS)}. Give its sizes: --sizes {wanted}"
        )
    family = FAMILIES.get(fields["model_type"])
    if family is None:
        raise ValueError(
            f"model_type={fields['model_type']!r}: its modules are not known. If it has the "
            f"modules of one of {', '.join(FAMILIES)}, give --sizes model_type=..."
        )
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    head = fields.get("head_dim") or width // heads
    return ModelSizes(
        family=family,
        width=width,
        layers=fields["num_hidden_layers"],
        mlp_width=fields["intermediate_size"],
        attention_width=heads * head,
        key_width=fields.get("num_key_value_heads", heads) * head,
        vocabulary=fields["vocab_size"],
        dtype=str(fields.get("torch_dtype") or fields.get("dtype") or "float32"),
        tied=fields.get("tie_word_embeddings", True),
        positions=family.positions * fields.get("max_position_embeddings", 1024),
    )


def _fields_of(model: str) -> dict[str, Any]:
    """The config of a model, with one name for each size; empty if it is not known."""
    if model in MODELS:
        return MODELS[model]
    path = Path(model) / "config.json"
    if not path.is_file():
        # Imported here because the import takes a third of a second.
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            return {}
        if not isinstance(found, str):
            return {}
        path = Path(found)
    fields: Mapping[str, Any] = json.loads(path.read_text())
    fields = {**fields, **fields.get("text_config", {})}
    named = {_GPT2_NAMES.get(name, name): value for name, value in fields.items()}
    if named.get("intermediate_size") is None and "hidden_size" in named:
        named["intermediate_size"] = 4 * named["hidden_size"]
    return {"max_position_embeddings": fields.get("n_positions", 1024)} | named


def _parsed(size: str) -> tuple[str, Any]:
    name, equals, value = size.partition("=")
    if name in ("model_type", "torch_dtype") and value:
        return name, value
    if not equals or not value.isdecimal() or int(value) == 0:
        raise ValueError(f"sizes: {size!r}: give a name and a number, as hidden_size=2048.")
    return name, int(value)
