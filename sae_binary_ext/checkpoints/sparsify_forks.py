"""Coders of sparsify's branches and forks, which neither host can express."""

from pathlib import Path
from typing import Any

from sae_binary_ext.checkpoints.errors import CheckpointError

SOURCE = "https://github.com/EleutherAI/sparsify"
SIGNED = (
    "signed=True: its codes may be negative, which no coder of SAELens or of today's sparsify can "
    f"have. Load it with the code that wrote it: pip install git+{SOURCE}@signed, then "
    "sae.Sae.load_from_disk(folder)."
)
# What the fields of a fork do. A field that is off leaves the coder as sparsify's.
OF_FORKS = {
    "batch_topk": "the k largest latents a token on average over a batch",
    "sample_topk": "the k largest latents a token on average over a row",
    "input_unit_norm": "inputs scaled to unit norm",
}
OF_CLT = {
    "n_targets",
    "n_sources",
    "normalize_io",
    "divide_cross_layer",
    "train_post_encoder",
    "post_encoder_scale",
    "coalesce_topk",
    "topk_coalesced",
}


def refuse_forks(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for a config of a fork whose coders compute something else."""
    if found := sorted(OF_CLT & config.keys()):
        raise CheckpointError(
            f"{path}: has {', '.join(found)}: a cross-layer transcoder of sparsify's branch clt. "
            "SAELens and sparsify have none. Load it with the code that wrote it: pip install "
            f"git+{SOURCE}@clt, then sparsify.SparseCoder.load_from_disk(folder)."
        )
    found = [name for name in OF_FORKS if config.get(name)]
    if found:
        what = "; ".join(f"{name} ({OF_FORKS[name]})" for name in found)
        raise CheckpointError(
            f"{path}: was written by a fork of sparsify with {what}. SAELens and sparsify have no "
            "such coders. Load it with the code that wrote it."
        )
