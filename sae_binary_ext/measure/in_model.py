"""Coders measured where they belong: in the model they were trained on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from sae_lens import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from tqdm import tqdm

from sae_binary_ext.measure.applied import heads_side_by_side
from sae_binary_ext.saelens.hook_views import HookView
from sae_binary_ext.saelens.splice import HookedModel, Splice, SplicedLosses, resolve_hook

ROWS_PER_FORWARD = 8


class SplicedModel:
    """Cross-entropy of a hooked model with an activation replaced by a coder's output.

    Args:
        model: a TransformerBridge, HookedTransformer or SAELens' HookedProxyLM.
        rows: int64 [rows, context], token ids.
        hook_name: the activation that coders read.
        hook_name_out: the activation they replace; hook_name where None, for autoencoders.
        first_position: positions before it stay as they are. An attention sink at position 0 has
            such a norm that replacing it would measure the sink and not the coder.

    Raises:
        ValueError: the model has no such hook.
    """

    def __init__(
        self,
        model: HookedModel,
        rows: Tensor,
        hook_name: str,
        hook_name_out: str | None = None,
        first_position: int = 0,
    ) -> None:
        source = resolve_hook(model, "hook_name", hook_name)
        target = resolve_hook(model, "hook_name_out", hook_name_out or hook_name)
        self._splice = Splice(model, source, target)
        self._rows, self._first_position = rows, first_position
        self.clean = self._mean_loss(self._splice.clean, "Clean model")
        self.ablated = self._mean_loss(self._splice.ablated, "Zero ablation")

    def losses(self, coder: SAE[Any]) -> SplicedLosses:
        """Losses with the coder's output in place, over all tokens of the rows."""

        def loss(rows: Tensor, where: Tensor) -> Tensor:
            return self._splice.replaced(rows, where, lambda x, _: coder(x))

        with heads_side_by_side(coder):
            spliced = self._mean_loss(loss, "Splicing")
        return SplicedLosses(self.clean, self.ablated, spliced)

    def _mean_loss(self, loss: Callable[[Tensor, Tensor], Tensor], description: str) -> float:
        total = 0.0
        for rows in tqdm(self._rows.split(ROWS_PER_FORWARD), description, leave=False):
            where = torch.ones_like(rows, dtype=torch.bool)
            where[:, : self._first_position] = False
            total += loss(rows, where).mean().item() * len(rows)
        return total / len(self._rows)


def read_pairs(
    model: HookedModel,
    rows: Tensor,
    hook_name: str,
    hook_name_out: str,
    first_position: int = 0,
) -> tuple[Tensor, Tensor]:
    """What a transcoder is measured on: the activations of the same tokens at two hooks.

    Args:
        model: as SplicedModel takes it.
        rows: int64 [rows, context], token ids.
        hook_name: where inputs are read.
        hook_name_out: where targets are.
        first_position: positions before it are left out.

    Returns:
        [tokens, d_in] and [tokens, d_out], row by row.

    Raises:
        ValueError: the model has no such hook.
    """
    splice = Splice(
        model,
        resolve_hook(model, "hook_name", hook_name),
        resolve_hook(model, "hook_name_out", hook_name_out),
    )
    found: list[tuple[Tensor, Tensor]] = []
    for batch in tqdm(rows.split(ROWS_PER_FORWARD), "Reading activations", leave=False):
        source, target = (x[:, first_position:].flatten(0, 1) for x in splice.read(batch))
        found.append((source, target))
    sources, targets = zip(*found, strict=True)
    return torch.cat(sources), torch.cat(targets)


@torch.no_grad()
def read_hooks(model: HookedModel, hook_names: Iterable[str], tokens: Tensor) -> dict[str, Tensor]:
    """Activations of one forward pass, which ends at the last layer that is asked for.

    Args:
        model: as SplicedModel takes it.
        hook_names: as resolve_hook gives them.
        tokens: int64 [rows, context].

    Returns:
        Of each hook [rows, context, width], the heads of a hook that has some side by side.

    Raises:
        ValueError: the model does not pass through one of them.
    """
    views = {name: HookView.of(name) for name in hook_names}
    found: dict[str, Tensor] = {}
    points = cast(Mapping[str, nn.Module], model.hook_dict)

    def keep(name: str, view: HookView) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: found.update({name: view.read(model, output)})

    handles = [
        points[view.hook_name].register_forward_hook(keep(name, view))
        for name, view in views.items()
    ]
    layers = [extract_stop_at_layer_from_tlens_hook_name(view.hook_name) for view in views.values()]
    known = [layer for layer in layers if layer is not None]
    stop = {"stop_at_layer": max(known)} if len(known) == len(layers) else {}
    try:
        model(tokens, **stop)
    finally:
        for handle in handles:
            handle.remove()
    if missing := views.keys() - found.keys():
        raise ValueError(f"{sorted(missing)}: the model does not pass through these hooks.")
    return found
