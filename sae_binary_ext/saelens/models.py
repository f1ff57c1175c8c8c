"""Models that coders are attached to."""

from pathlib import Path

from sae_lens import SAETransformerBridge
from sae_lens.load_model import load_model

from sae_binary_ext.saelens.splice import HookedModel

BRIDGES = ("TransformerBridge", "SAETransformerBridge")


def load_hooked_model(class_name: str | None, name: str, device: str) -> HookedModel:
    """The model of a coder.

    Args:
        class_name: as a coder's metadata names it; None for a TransformerBridge.
        name: Hub id or folder.
        device: where to put it.

    Raises:
        ValueError: a folder for HookedTransformer, which loads models by name alone.
    """
    if class_name is None or class_name in BRIDGES:
        return SAETransformerBridge.boot_transformers(name, device=device)
    if class_name == "HookedTransformer" and Path(name).is_dir():
        raise ValueError(
            f"model_class_name='HookedTransformer' of the coders: it loads models by name, and "
            f"{name!r} is a folder. Give the model's name on the Hub. Or set "
            "metadata.model_class_name in each coder's cfg.json to 'TransformerBridge', which has "
            "the same hook names, or to 'AutoModelForCausalLM', whose hooks are modules "
            "(model.layers.9): both load folders."
        )
    return load_model(class_name, name, device=device)
