"""Four coders with random weights, and settings of `compare`, for the tests of that command."""

from pathlib import Path
from typing import Any

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.commands import CompareConfig
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

WIDTH, LATENTS, CONTEXT = 16, 40, 16
HOOK = "blocks.0.hook_resid_post"


def save_coders(tmp_path: Path, tiny_model_folder: Path) -> list[str]:
    """Save a binary and a stock coder of each host, with random weights, all for the same hook."""
    torch.manual_seed(0)
    metadata = SAEMetadata(
        model_name=str(tiny_model_folder),
        hook_name=HOOK,
        context_size=CONTEXT,
        prepend_bos=True,
        dataset_path="unused",
    )
    sizes: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": 5, "metadata": metadata}
    folders = [str(tmp_path / name) for name in ("binary", "stock", "run")]
    BinarySAE(BinarySAEConfig(**sizes)).save_model(folders[0])
    TopKSAE(TopKSAEConfig(**sizes)).save_model(folders[1])
    stock = SparseCoderConfig(num_latents=LATENTS, k=5)
    SparseCoder(WIDTH, stock).save_to_disk(tmp_path / "run" / "layers.0")
    binary = BinarySparseCoderConfig(num_latents=LATENTS, k=5)
    BinarySparseCoder(WIDTH, binary).save_to_disk(tmp_path / "run" / "binary" / "layers.0")
    return folders


def config_of(model: Path, dataset: Path, output: Path, **changes: Any) -> CompareConfig:
    settings: dict[str, Any] = {"tokens": 2000, "spliced_tokens": 1000, "context_size": CONTEXT}
    return CompareConfig(
        model=str(model), dataset=str(dataset), output=output, **settings | changes
    )
