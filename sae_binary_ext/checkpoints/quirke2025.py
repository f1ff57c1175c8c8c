"""The first paper's files: sparsify's, with a few fields of their own.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_binary_ext.checkpoints import sparsify
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.portable import PortableCoder, notes_of
from sae_binary_ext.coding.paper_names import PAPER_FIELDS, PAPER_IDLE_FIELD
from sae_binary_ext.saving import NOTES_KEY

FORMAT = "quirke2025"
# What their files say beside what a coder is; none of it changes what a coder computes.
IDLE_FIELDS: dict[str, Any] = {
    "expansion_factor": 32,
    "normalize_decoder": False,
    "multi_topk": False,
    PAPER_IDLE_FIELD: 5,
}


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as the paper's code does.

    Raises:
        CheckpointError: the paper's files have no place for something of the coder.
    """
    shape = coder.shape
    sparsify.refuse_inexpressible(shape)
    if not shape.binary:
        raise CheckpointError(
            f"activation={shape.rule.selection!r}: the first paper's files hold binary coders. "
            "Choose sparsify, whose files its coders with values are."
        )
    subtracts = shape.rule.kind.subtracts_b_dec and not shape.transcoder
    if shape.subtracts_decoder_bias != subtracts:
        raise CheckpointError(
            f"subtract_b_dec={shape.subtracts_decoder_bias} with selection "
            f"{shape.rule.selection!r}: the first paper's autoencoders subtract b_dec from their "
            "input, but for those of activation 'binary', and their files cannot say otherwise."
        )
    before = coder.settings.get(FORMAT, {})
    idle = {key: before.get(key, value) for key, value in IDLE_FIELDS.items()}
    fields = sparsify.fields_of(shape)
    fields.pop("subtract_b_dec")
    if before.get("num_latents") == 0:
        fields["num_latents"] = 0
    notes = notes_of(coder)
    notes["settings"] = {key: value for key, value in coder.settings.items() if key != FORMAT}
    config = {**idle, **fields, **PAPER_FIELDS, "d_in": shape.d_in, NOTES_KEY: notes}
    folder.mkdir(parents=True, exist_ok=True)
    stored = dict(coder.tensors)
    if not shape.rule.kind.has_thresholds and (stored["log_threshold"] == -torch.inf).all():
        # As the paper's, which have none.
        del stored["log_threshold"]
    tensors = {sparsify.PARAMETERS[key]: value.contiguous() for key, value in stored.items()}
    save_file(tensors, folder / sparsify.WEIGHTS)
    (folder / "cfg.json").write_text(json.dumps(config))
