"""Saves random models with a word tokeniser, and gives settings of SAELens' runner.

This file imports no test and no adapter, because tests/installed.py runs it without them.
"""

from pathlib import Path
from typing import Any

VOCABULARY = 60


def save_tokenizer(folder: Path) -> None:
    """Save a tokeniser of the words w2 to w59."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def save_llama(folder: Path, layers: int) -> None:
    """Save a Llama of random weights and width 16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=VOCABULARY,
            bos_token_id=0,
            eos_token_id=1,
            max_position_embeddings=64,
            initializer_range=0.5,  # activations are about as large as a trained model's
        )
    ).save_pretrained(folder)
    save_tokenizer(folder)


def save_gpt2(folder: Path) -> None:
    """Save a GPT-2 of two layers, four heads and 32 positions. Biases and norms are random too."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=32,
        n_ctx=32,  # TransformerLens reads this field
        initializer_range=0.3,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "ln" in name:
                parameter.normal_(1, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_wide_model(folder: Path) -> None:
    """Save a Llama that suits the documents' code: it has SmolLM2's width and layers up to 9."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=10,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)


def runner_settings(model: str, text: str) -> dict[str, Any]:
    """Settings for "model, data, logging" in documents: ten short steps in SAELens."""
    from sae_lens import LoggingConfig

    return {
        "model_name": model,
        "dataset_path": text,
        "streaming": False,
        "context_size": 16,
        "train_batch_size_tokens": 64,
        "training_tokens": 640,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 16,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": "output",
    }


def autoencoder_settings(model: str, text: str) -> dict[str, Any]:
    """Settings of a run with a hook, for SAELens' runner of one autoencoder."""
    return runner_settings(model, text) | {
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.8",
        "is_dataset_tokenized": False,
        "verbose": False,
    }
