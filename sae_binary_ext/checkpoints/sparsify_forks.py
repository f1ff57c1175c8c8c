"""Coders of sparsify's branches and forks that neither host can run."""

from pathlib import Path
from typing import Any

from sae_binary_ext.checkpoints.errors import CheckpointError

SOURCE = "https://github.com/EleutherAI/sparsify"
NO_HOST = "SAELens and sparsify cannot load it. Load it with the code that wrote it"
SIGNED = (
    f"signed=True: its codes may be negative. {NO_HOST}: pip install git+{SOURCE}@signed, then "
    "sae.Sae.load_from_disk(folder)."
)
# Fields of the first paper's branches that change what a coder computes if they are on.
VARIANTS = {
    "tied_decoder": (
        "the decoder is the encoder's weight, and the file holds one of the two. Store it under "
        "both names, encoder.weight and W_dec, and set tied_decoder to false: codes and outputs "
        "stay the same."
    )
}
# What the fields of a fork do. If such a field is off, the coder is an ordinary one of sparsify.
OF_FORKS = {
    "batch_topk": "the k largest latents a token on average over a batch",
    "sample_topk": "the k largest latents a token on average over a row",
    "input_unit_norm": "inputs scaled to unit norm",
}
# Fields of cross-layer transcoders.
OF_CLT = {
    "n_targets", "n_sources", "normalize_io", "divide_cross_layer", "train_post_encoder",
    "post_encoder_scale", "coalesce_topk", "topk_coalesced",
}  # fmt: skip


def refuse_forks(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for a config of a fork whose coders compute something else."""
    if found := sorted(OF_CLT & config.keys()):
        raise CheckpointError(
            f"{path}: has {', '.join(found)}: a cross-layer transcoder of sparsify's branch clt. "
            f"{NO_HOST}: pip install git+{SOURCE}@clt, then sparsify.SparseCoder."
            "load_from_disk(folder)."
        )
    if found := [f"{name} ({what})" for name, what in OF_FORKS.items() if config.get(name)]:
        raise CheckpointError(
            f"{path}: is of a fork of sparsify with {'; '.join(found)}. {NO_HOST}."
        )
