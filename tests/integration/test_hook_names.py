"""In models of each kind, both names in a row of the table of hook names give one activation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAETransformerBridge
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sae_binary_ext.checkpoints.hook_names import place_in_saelens
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.saelens.splice import resolve_hook

pytestmark = pytest.mark.integration

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
TOKENS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LAYERS = ("layers.1", "layers.1.mlp")
NORMS = ("layers.1.input_layernorm", "layers.1.post_attention_layernorm", "norm")
# Hookpoints of models whose MLPs have a gate.
PARTS = (
    *LAYERS, *NORMS, "layers.1.self_attn", "layers.1.self_attn.o_proj",
    "layers.1.mlp.down_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj",
)  # fmt: skip
OF_NEOX = (
    *LAYERS, *NORMS[:2], "final_layer_norm", "layers.1.attention", "layers.1.attention.dense",
    "layers.1.mlp.act", "layers.1.mlp.dense_h_to_4h", "layers.1.mlp.dense_4h_to_h",
)  # fmt: skip
OF_GPT2 = (
    "h.1", "h.1.mlp", "h.1.attn", "wte", "h.1.ln_1", "h.1.ln_2", "ln_f", "h.1.mlp.act",
    "h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.1.attn.c_proj",
)  # fmt: skip
AROUND = ("layers.1.pre_feedforward_layernorm", "layers.1.post_feedforward_layernorm")
# Kind of model: a name from which the kind is recognised, sizes, and hookpoints.
MODELS = {
    "llama": ("SmolLM2", SIZES | HEADS, (*PARTS, "embed_tokens")),
    "mistral": ("Mistral-7B", SIZES | HEADS, PARTS),
    "qwen2": ("Qwen2.5-0.5B", SIZES | HEADS, PARTS),
    "gemma": ("gemma-2b", SIZES | HEADS, PARTS),
    "gemma2": ("gemma-2-2b", SIZES | HEADS, (*PARTS, *AROUND)),
    "gemma3_text": ("gemma-3-1b", SIZES | HEADS, (*PARTS, *AROUND)),
    "olmo2": (
        "OLMo-2-0425-1B",
        SIZES | {"num_attention_heads": 2, "num_key_value_heads": 1},
        (*(part for part in PARTS if "input" not in part), AROUND[1]),
    ),
    "gpt_neox": ("pythia-70m", SIZES | {"num_attention_heads": 2}, (*OF_NEOX, "embed_in")),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, OF_GPT2),
}
# TransformerLens' name of these hookpoints depends on the model.
NEEDS_MODEL = (*NORMS, *AROUND, "h.1.mlp.act", "layers.1.mlp.act")
TRANSCODED = (
    "layers.1", "layers.1.mlp", "h.1", "h.1.mlp", "layers.1.mlp.down_proj", "h.1.mlp.c_proj",
    "h.1.mlp.c_fc", "layers.1.mlp.gate_proj", "layers.1.mlp.act", "h.1.mlp.act",
)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind of a model, the model, and a bridge with the same weights."""
    kind = request.param
    folder: Path = tmp_path_factory.mktemp(kind)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MODELS[kind][1], **TOKENS, initializer_range=0.5)
    plain = AutoModelForCausalLM.from_config(config).eval()
    for parameter in plain.parameters():
        if parameter.ndim == 1:
            # With initial weights of 1, a test could not see whether a normalisation was applied.
            parameter.data += 0.5 * torch.randn_like(parameter)
    plain.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w0", eos_token="w1", pad_token="w1"
    ).save_pretrained(folder)
    return kind, plain, SAETransformerBridge.boot_transformers(str(folder), device="cpu")


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def of_module(plain: Any, hookpoint: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module, read with a forward hook as sparsify does."""
    seen: list[tuple[Tensor, Tensor]] = []
    module = plain.base_model.get_submodule(hookpoint)
    handle = module.register_forward_hook(
        lambda module, arguments, output: seen.append(
            (first(arguments) if arguments else torch.empty(0), first(output))
        )
    )
    plain(tokens)
    handle.remove()
    return seen[0]


def at_hook(bridge: Any, hook_name: str, tokens: Tensor) -> Tensor:
    name = resolve_hook(bridge, "hook_name", hook_name)
    return bridge.run_with_cache(tokens, names_filter=[name])[1][name]


@torch.no_grad()
def test_both_names_are_the_same_activation(model: Any):
    kind, plain, bridge = model
    name, _, hookpoints = MODELS[kind]
    tokens = torch.randint(2, 50, (2, 12))
    torch.testing.assert_close(bridge(tokens), plain(tokens).logits, atol=1e-3, rtol=1e-3)
    for hookpoint in hookpoints:
        source, output = of_module(plain, hookpoint, tokens)
        for model_name in (name, None):
            if model_name is None and hookpoint in NEEDS_MODEL:
                continue
            place = Place(hookpoint=hookpoint, model_name=model_name)
            found = at_hook(bridge, place_in_saelens(place, False).hook_name or "", tokens)
            torch.testing.assert_close(
                found,
                output,
                atol=1e-3,
                rtol=1e-3,
                msg=lambda text, name=hookpoint: f"{name}: {text}",
            )
            if hookpoint in TRANSCODED:
                both = place_in_saelens(place, True)
                found = at_hook(bridge, both.hook_name or "", tokens)
                torch.testing.assert_close(
                    found,
                    source,
                    atol=1e-3,
                    rtol=1e-3,
                    msg=lambda text, name=hookpoint: f"{name}: {text}",
                )
                found = at_hook(bridge, both.hook_name_out or "", tokens)
                torch.testing.assert_close(
                    found,
                    output,
                    atol=1e-3,
                    rtol=1e-3,
                    msg=lambda text, name=hookpoint: f"{name}: {text}",
                )
