"""Trains coders of the outputs of four MLPs of SmolLM2, one by one, in SAELens' trainer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETrainer, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
from sae_binary_ext.commands.demo.activations import tokenised_rows
from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.measure import refit_decoder
from sae_binary_ext.saelens import BinaryTrainingSAEConfig

LAYERS = (0, 9, 18, 27)
TOKENS = 143_000
WIDTH, LATENTS, BATCH = 576, 1152, 256
ROWS_PER_FORWARD, REFIT_TOKENS = 8, 2048


@dataclass(frozen=True)
class Family:
    """An architecture and its settings of training.

    Attributes:
        config: makes a config of the architecture.
        lr: the learning rate.
        adam_beta2: Adam's second decay rate.
        dead_feature_window: steps until a latent counts as dead.
    """

    config: Any
    lr: float
    adam_beta2: float
    dead_feature_window: int


FAMILIES = {
    "binary": Family(partial(BinaryTrainingSAEConfig, surrogate_temperature=0.5), 6e-3, 0.99, 10),
    "topk": Family(partial(TopKTrainingSAEConfig, decoder_init_norm=1.0), 2e-3, 0.999, 100),
}
# Family and k. With k = 40, binary coders have about as many bits as topk with 8 bits a value, and
# with k = 18 about as many as topk by MDL.
KINDS = {
    f"{family}_{k}": (family, k) for family, k in (("binary", 40), ("binary", 18), ("topk", 16))
}


def folders_of(folder: Path, kind: str) -> list[Path]:
    """Folders of a kind's coders, in the order of LAYERS."""
    return [folder / "coders" / f"{kind}_{layer}" for layer in LAYERS]


def train_missing(folder: Path, kind: str) -> None:
    """Train the coders of a kind that are not there yet."""
    for layer, saved in zip(LAYERS, folders_of(folder, kind), strict=True):
        if not saved.exists():
            train(kind, layer, activations(folder)[str(layer)], saved)


@torch.no_grad()
def activations(folder: Path) -> dict[str, Tensor]:
    """Outputs of the MLPs by layer, float16 [TOKENS, width]; computed once."""
    path = folder / "activations.safetensors"
    if path.is_file():
        return load_file(path)
    model_folder = export_smollm2(folder / "model")
    config = DemoConfig(training_tokens=TOKENS)
    rows, _ = tokenised_rows(config, AutoTokenizer.from_pretrained(model_folder))
    model: Any = LlamaForCausalLM.from_pretrained(model_folder).eval()
    found: dict[str, list[Tensor]] = {str(layer): [] for layer in LAYERS}
    for layer in LAYERS:

        def keep(_: Any, __: Any, output: Tensor, layer: int = layer) -> None:
            found[str(layer)].append(output[:, FIRST_POSITION:].flatten(0, 1).half())

        model.model.layers[layer].mlp.register_forward_hook(keep)
    for batch in tqdm(rows.split(ROWS_PER_FORWARD), "Activations"):
        model.model(batch, use_cache=False)
    parts = {layer: torch.cat(batches)[:TOKENS] for layer, batches in found.items()}
    save_file(parts, path)
    return parts


def train(kind: str, layer: int, states: Tensor, folder: Path) -> None:
    """Train a coder once on states [tokens, width] of a layer and save its inference form."""
    name, k = KINDS[kind]
    family = FAMILIES[name]
    metadata = SAEMetadata(
        model_name=MODEL_NAME,
        hook_name=f"blocks.{layer}.hook_mlp_out",
        context_size=DemoConfig.context_size,
        prepend_bos=True,
        seqpos_slice=(FIRST_POSITION, None),
    )
    sae = family.config(
        d_in=WIDTH,
        d_sae=LATENTS,
        k=k,
        normalize_activations="expected_average_only_in",
        metadata=metadata,
    )
    settings = SAETrainerConfig(
        total_training_samples=len(states),
        train_batch_size_samples=BATCH,
        lr=family.lr,
        lr_end=0.0,
        lr_decay_steps=len(states) // BATCH,
        adam_beta2=family.adam_beta2,
        dead_feature_window=family.dead_feature_window,
        n_batches_for_norm_estimate=20,
        logger=LoggingConfig(log_to_wandb=False),
    )
    torch.manual_seed(0)
    coder: Any = TrainingSAE.from_dict(sae.to_dict())
    trained = SAETrainer(settings, coder, shuffled_batches(states, BATCH, 0)).fit()
    trained.save_inference_model(folder)
    if name == "binary":
        saved: Any = SAE.load_from_disk(folder)
        refit_decoder(saved, ((part.float(), part.float()) for part in states.split(REFIT_TOKENS)))
        saved.save_model(folder)
