"""Steers a model: changes latents of coders at their hooks while the model runs.

The activation x at a coder's hook becomes x + decode(changed codes) - decode(codes). So what the
coder does not explain of x stays in the model. The difference is a sum of decoder rows, of the
latents that change, and nothing else is computed.
"""

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.steering.code_change import CodeChange
from sae_binary_ext.steering.place_in_model import PlaceInModel, place_in, replaced
from sae_binary_ext.steering.positions import TokenPositions


class Steering(AbstractContextManager["Steering"]):
    """Within the block, latents are changed in every forward pass of a model.

        with Steering(model, CodeChange(coder, set=[1203], clear=[7], where="88 & !5")):
            model.generate(tokens)

    Generation with a cache is steered as it is without one. Padding is left as it is. The model is
    as before at the end of the block, also after an exception.

    Args:
        model: a TransformerBridge, a HookedTransformer, another hooked model of SAELens, or a
            model of transformers.
        changes: what to change. Coders may be at several hooks. Changes of one coder apply one
            after the other, so the last one wins where two rules set and clear a latent. All rules
            read the codes before any change.

    Raises:
        ValueError: no change is given, or the model lacks a coder's hook. In a forward pass: the
            activations do not have a coder's width, or an attention mask does not tell padding. At
            the end of the block: the model ran, and did not pass through a hook.
    """

    def __init__(self, model: Any, *changes: CodeChange) -> None:
        if not changes:
            raise ValueError("changes: none were given. Give at least one CodeChange.")
        self._model = model
        self._positions = TokenPositions()
        self._places: dict[PlaceInModel, dict[int, list[CodeChange]]] = {}
        for change in changes:
            by_coder = self._places.setdefault(place_in(model, change), {})
            by_coder.setdefault(id(change.coder), []).append(change)
        self._stack = ExitStack()
        self._passed = set[tuple[str, str]]()

    @override
    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for handle in self._positions.listen(self._model):
                stack.callback(handle.remove)
            replacements = {place: partial(self._steered, place) for place in self._places}
            self._passed = stack.enter_context(replaced(self._model, replacements))
            self._stack = stack.pop_all()
        return self

    @override
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        missed = {place.names for place in self._places} - self._passed
        if error is None and self._positions.ran and missed:
            raise ValueError(
                f"hook: the model ran and did not pass through {sorted(missed)}. Some hooks are "
                "off by default: switch them on in the model, or give another hook."
            )

    def _steered(self, place: PlaceInModel, source: Tensor, target: Tensor) -> Tensor:
        """The activation at a place, [rows, context, d_out], after all changes there."""
        positions = self._positions.at(source)
        for changes in self._places[place].values():
            target = target + added_rows(changes, source, target, positions)
        return target


@torch.no_grad()
def added_rows(
    changes: list[CodeChange], source: Tensor, target: Tensor, positions: Tensor
) -> Tensor:
    """What changes of one coder add to an activation, shaped and typed as target.

    Args:
        changes: changes of one coder, applied one after the other.
        source: activations that the coder reads, [rows, context, d_in].
        target: activations that it writes, [rows, context, d_out].
        positions: int64 [rows, context], positions of tokens; -1 at padding.

    Raises:
        ValueError: the activations do not have the coder's widths.
    """
    own = changes[0].own
    widths = source.shape[-1], target.shape[-1]
    if widths != (own.d_in, own.d_out):
        raise ValueError(
            f"coder: takes {own.d_in} to {own.d_out} dimensions, and the model has {widths[0]} and "
            f"{widths[1]} at its hook. Give the model and the hook that the coder was trained on."
        )
    added = torch.zeros_like(target)
    read = positions >= min(change.first_position for change in changes)
    if read.any():
        codes, scale = own.encode(source[read])
        difference = code_difference(changes, codes, positions[read].to(codes.device))
        rows = difference @ own.rows(_latents(changes))
        added[read] = (rows if scale is None else rows * scale).to(added)
    return added


def code_difference(changes: list[CodeChange], codes: Tensor, positions: Tensor) -> Tensor:
    """Changed codes less codes, [tokens, changed latents], in the rising order of latents.

    codes: [tokens, latents] of the changes' coder. positions: int64 [tokens].
    """
    latents = _latents(changes)
    columns = {latent: column for column, latent in enumerate(latents)}
    before = codes[:, latents]
    now = before.clone()
    for change in changes:
        where = change.rule.holds(codes) & (positions >= change.first_position)
        change.apply(now, where, columns)
    return now - before


def _latents(changes: list[CodeChange]) -> list[int]:
    return sorted({latent for change in changes for latent in change.latents})
