"""Models that coders are attached to."""

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
    """
    if class_name is None or class_name in BRIDGES:
        return SAETransformerBridge.boot_transformers(name, device=device)
    return load_model(class_name, name, device=device)
