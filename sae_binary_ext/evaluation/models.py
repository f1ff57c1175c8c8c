"""The model that coders are measured in."""

from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from sae_binary_ext.demo.model import MODEL_NAME, export_smollm2
from sae_binary_ext.evaluation.candidates import Candidate, common_model
from sae_binary_ext.saelens.models import load_hooked_model
from sae_binary_ext.saelens.splice import HookedModel


def open_model(
    candidates: list[Candidate], model: str | None, folder: Path, device: str
) -> tuple[str, HookedModel, PreTrainedTokenizerBase]:
    """The hooked model that coders belong to.

    Args:
        candidates: whose files may name it.
        model: Hub id or folder; None takes the one that the coders' files name, and SmolLM2 from
            the installed package.
        folder: where SmolLM2's files go, into "model".
        device: where to put it.

    Returns:
        Its name, the model and its tokenizer.

    Raises:
        ValueError: coders of several models, of another one, or of different classes of models.
    """
    name = common_model(candidates, model)
    embedded = model is None and name == MODEL_NAME
    path = str(export_smollm2(folder / "model")) if embedded else name
    hooked: Any = load_hooked_model(_common_class(candidates), path, device)
    return name, hooked, cast(PreTrainedTokenizerBase, hooked.tokenizer)


def _common_class(candidates: list[Candidate]) -> str | None:
    """The class of hooked model that all coders were trained with.

    Raises:
        ValueError: there are several: a HookedTransformer's activations are not a bridge's.
    """
    classes = {each.coder.cfg.metadata.model_class_name: each.name for each in candidates}
    named = {name: coder for name, coder in classes.items() if name is not None}
    if len(named) > 1:
        raise ValueError(f"coders: were trained with models of different classes: {named}.")
    return next(iter(named), None)
