"""The hooks of a coder at other layers of a model."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from sae_binary_ext.saelens.splice import HookedModel, resolve_hook

# blocks.9.hook_resid_pre, model.layers.9, transformer.h.9.mlp
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)(?=\.|$)")
EVERY_LAYER = 3


def layer_of(hook: str) -> int:
    """The layer of a hook; raises ValueError if its name has no number of a layer."""
    if (found := BLOCK.search(hook)) is None:
        raise ValueError(
            f"hook={hook!r}: belongs to no layer, so other layers have no such hook. Give a coder "
            "of a layer."
        )
    return int(found[1])


def layer_hooks(
    model: HookedModel, hooks: tuple[str, str], layers: Iterable[int]
) -> dict[int, tuple[str, str]]:
    """A coder's hooks at other layers.

    `hooks` are the coder's hooks of inputs and outputs, as its files name them; no `layers` means
    every third. Returns the model's names of both hooks for each layer, in order, the coder's own
    layer included.

    Raises:
        ValueError: the coder has no layer, or two, or the model lacks one of the layers.
    """
    home, target = map(layer_of, hooks)
    if home != target:
        raise ValueError(
            f"hooks={hooks}: the coder reads one layer and predicts another. Give a coder of one "
            "layer."
        )
    known = {
        number: pair
        for number in range(_layers(model))
        if (pair := _resolved(model, hooks, number)) is not None
    }
    wanted = set(layers) or {number for number in known if number % EVERY_LAYER == 0}
    if missing := sorted(wanted - known.keys()):
        raise ValueError(
            f"layers={missing}: the model has no such hook there. It has {sorted(known)}."
        )
    return {number: known[number] for number in sorted(wanted | {home})}


def _resolved(model: HookedModel, hooks: tuple[str, str], layer: int) -> tuple[str, str] | None:
    try:
        source, target = (resolve_hook(model, "layers", _at(hook, layer)) for hook in hooks)
    except ValueError:
        return None
    return source, target


def _at(hook: str, layer: int) -> str:
    return BLOCK.sub(lambda found: found[0].replace(found[1], str(layer)), hook, count=1)


def _layers(model: HookedModel) -> int:
    names = cast(Mapping[str, Any], model.hook_dict)
    return 1 + max(int(found[1]) for name in names if (found := BLOCK.search(name)))
