"""Saves fine-tuned coders in the formats that they were read from."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_binary_ext.checkpoints import saelens, sources, stock
from sae_binary_ext.checkpoints.load import write_coder
from sae_binary_ext.checkpoints.portable import FINETUNED, NOTES_VERSION
from sae_binary_ext.checkpoints.sources import format_of
from sae_binary_ext.saving import NOTES_KEY


def save_finetuned(coder: Any, source: Path, out: Path, note: Mapping[str, Any]) -> None:
    """Save a fine-tuned SAELens coder in the format and dtype of the folder it was read from.

    The new file has no firing rates, because those of the old file are of other codes.

    Args:
        coder: the coder, as load_coder gives it, with other weights.
        source: the folder that it was read from.
        out: its new folder, which is written all at once.
        note: how it was fine-tuned, for its config, `inspect` and the model card.

    Raises:
        CheckpointError: `out` holds other files, or a weight is not finite.
    """
    if _is_saelens_alone(source):
        from sae_lens.util import str_to_dtype

        dtype = str_to_dtype(str(stock.current_config(source).get("dtype", "float32")))
        notes = {"version": NOTES_VERSION, "place": {}, "settings": {FINETUNED: dict(note)}}
        coder.cfg.metadata[NOTES_KEY] = notes
        write_coder(coder.to(dtype), out, "saelens", ())
        return
    portable = sources.read_coder(source)
    trained = saelens.from_coder(coder).tensors
    tensors = {name: trained[name].to(old.dtype) for name, old in portable.tensors.items()}
    settings = {**portable.settings, FINETUNED: dict(note)}
    coder = replace(portable, tensors=tensors, firing_rates=None, settings=settings)
    write_coder(coder, out, str(format_of(source)), ())


def learners_of(source: Path) -> str | None:
    """The latents that learned from each token in training, if the coder's files tell them."""
    if _is_saelens_alone(source):
        return None
    told = sources.read_coder(source).settings.get("sparsify", {}).get("ste_latents")
    return told if isinstance(told, str) else None


def _is_saelens_alone(folder: Path) -> bool:
    """Whether only SAELens can read and write a folder's coder."""
    return format_of(folder) == "saelens" and saelens.is_stock(folder)
