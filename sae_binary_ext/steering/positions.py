"""Positions of tokens in a forward pass, cached or not, with padding known.

In a cached step of generation a hook sees new tokens alone. The cache tells how many came before,
and the attention mask tells which of them are padding.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer


class TokenPositions:
    """Listens to the forward passes of a model, and tells the positions of their tokens.

    `ran` is whether a forward pass has begun since `listen`.
    """

    def __init__(self) -> None:
        self.ran = False
        self._found: Tensor | None = None

    def listen(self, model: Any) -> list[RemovableHandle]:
        """Listen to a model: of SAELens, TransformerLens or transformers. Remove the handles."""
        self.ran, self._found = False, None
        if isinstance(model, HookedTransformer):
            # Each block gets the attention mask that the model has made of tokens and cache.
            blocks = cast(list[nn.Module], list(model.blocks))
            return [
                each.register_forward_pre_hook(self._hear_block, with_kwargs=True)
                for each in blocks
            ]
        inner = bare_model(model)
        if inner is None:
            return [model.register_forward_pre_hook(self._hear_nothing)]
        return [inner.register_forward_pre_hook(self._hear_transformers, with_kwargs=True)]

    def at(self, activations: Tensor) -> Tensor:
        """int64 [rows, context]: positions in activations [rows, context, width]; -1 at padding.

        ValueError if the activations do not have the tokens of the forward pass.
        """
        shape = activations.shape
        if len(shape) != 3:
            raise ValueError(
                f"hook: its activations have shape {tuple(shape)}, and steering takes [rows, "
                "context, width]. Steer at another hook."
            )
        if self._found is None:
            return torch.arange(shape[1], device=activations.device).expand(shape[:2])
        if self._found.shape[1] != shape[1] or self._found.shape[0] not in (1, shape[0]):
            raise ValueError(
                f"hook: its activations have {tuple(shape[:2])} rows and tokens, and the forward "
                f"pass has {tuple(self._found.shape)}. Steer at another hook."
            )
        return self._found.to(activations.device).expand(shape[:2])

    def _hear_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        residual = args[0] if args else kwargs["resid_pre"]
        cache = kwargs.get("past_kv_cache_entry")
        past = 0 if cache is None else cache.past_keys.shape[1]
        self._note(residual, past, kwargs.get("attention_mask"))

    def _hear_transformers(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        self._note(given, past, kwargs.get("attention_mask"))

    def _hear_nothing(self, *_: Any) -> None:
        self.ran = True

    def _note(self, given: Tensor, past: int, mask: Any) -> None:
        self.ran = True
        self._found = positions_of(given.shape[0], given.shape[1], past, mask)


def bare_model(model: Any) -> nn.Module | None:
    """The model of transformers, without its language head, within any model; None if none is."""
    for name in ("original_model", "model"):
        inner = vars(model).get("_modules", {}).get(name) or vars(model).get(name)
        if hasattr(inner, "base_model"):
            return cast(Any, inner).base_model
    return getattr(model, "base_model", None)


def positions_of(rows: int, new: int, past: int, mask: Any) -> Tensor:
    """int64 [rows, new]: positions of new tokens after `past` tokens; -1 at padding.

    mask is the attention mask [rows, past + new], 0 at padding, or None. ValueError for another
    mask.
    """
    if mask is None:
        return torch.arange(past, past + new).expand(rows, new)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != past + new:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask of {shape}: steering cannot tell which of {past + new} tokens are "
            f"padding. Give a mask [rows, {past + new}] of 0 and 1."
        )
    there = mask.bool()
    return torch.where(there, there.cumsum(1) - 1, -1)[:, past:]
