"""Computes SmolLM2's activations on the Wikipedia sample once, and keeps them in a file."""

import logging
import math
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from sae_binary_ext.bundled.wikipedia import is_held_out, read_wikipedia_sample
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig

logger = logging.getLogger(__name__)
ROWS_PER_FORWARD = 8
# Name of the tensor in the file of activations.
TENSOR = "train"


def load_or_compute(config: DemoConfig, model_folder: Path) -> Tensor:
    """The activations that the demo's coders are trained on, from the file if it exists.

    Activations are float16 [training tokens, d_in], the residual stream that enters config.layer.
    ValueError if the sample has too few tokens, or if the model does not have the layer.
    """
    path = config.output / "activations.safetensors"
    names = ("layer", "training_tokens", "context_size", "seed")
    settings = {name: str(getattr(config, name)) for name in names}
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if file.metadata() == settings:
                logger.info("Using the activations in %s", path)
                return file.get_tensor(TENSOR)
    activations = _compute(config, model_folder)
    # Move the file into place once it is whole, so that an interrupted run leaves no partial file.
    unfinished = path.with_suffix(".unfinished")
    save_file({TENSOR: activations}, unfinished, metadata=settings)
    unfinished.replace(path)
    return activations


@torch.no_grad()
def _compute(config: DemoConfig, model_folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    if not 0 <= config.layer < (layers := model.config.num_hidden_layers):
        raise ValueError(f"layer={config.layer}: the model has layers 0 to {layers - 1}.")
    # Cut the text first, which raises an error before any training if there is too little text.
    training, _ = tokenised_rows(config, tokenizer)
    # Remove the later layers, so that the model returns the residual stream that enters
    # config.layer.
    model.model.layers = model.model.layers[: config.layer]
    model.model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    outputs: list[Tensor] = []
    with tqdm(total=training.numel(), desc="Activations", unit="tokens", unit_scale=True) as bar:
        for batch in training.split(ROWS_PER_FORWARD):
            hidden = model.model(batch, use_cache=False).last_hidden_state
            outputs.append(hidden[:, FIRST_POSITION:].flatten(0, 1).half())
            bar.update(batch.numel())
    return torch.cat(outputs)[: config.training_tokens]


def tokenised_rows(config: DemoConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Training and held-out rows of token ids, each [rows, context_size], in random order.

    ValueError if the sample has fewer tokens than the settings ask for.
    """
    training: list[list[int]] = []
    held_out: list[list[int]] = []
    bos, length = cast(int, tokenizer.bos_token_id), config.context_size - 1
    for number, (_, text) in enumerate(tqdm(read_wikipedia_sample(), "Articles", leave=False)):
        rows = held_out if is_held_out(number) else training
        # verbose=False, because the tokenizer would warn of texts longer than the model's context.
        ids = cast(list[int], tokenizer(text, verbose=False)["input_ids"])
        starts = range(0, len(ids) - length + 1, length)
        rows.extend([bos, *ids[start : start + length]] for start in starts)
    generator = torch.Generator().manual_seed(config.seed)

    def sample(rows: list[list[int]], field: str) -> Tensor:
        tokens, used = getattr(config, field), config.context_size - FIRST_POSITION
        if (wanted := math.ceil(tokens / used)) > len(rows):
            most = len(rows) * used
            raise ValueError(f"{field}={tokens}: the Wikipedia sample has {most} such tokens.")
        return torch.tensor(rows)[torch.randperm(len(rows), generator=generator)[:wanted]]

    return sample(training, "training_tokens"), sample(held_out, "held_out_tokens")
