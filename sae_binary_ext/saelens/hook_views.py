"""An activation as coders read it: one vector a token, of all heads side by side or of one head.

SAELens trains on hooks with a vector a head ([rows, context, heads, d_head]: attn.hook_z, hook_q,
hook_k, hook_v) in two ways: on all heads side by side, or on the head of a coder's hook_head_index.
Such a head is named as PyTorch would index it: blocks.3.attn.hook_z[5].
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

HEAD = re.compile(r"(?P<hook>.+)\[(?P<head>\d+)\]")
# [rows, context, heads, d_head]
DIMENSIONS_WITH_HEADS = 4


@dataclass(frozen=True)
class HookView:
    """A hook, or one head of it.

    Attributes:
        hook_name: the hook.
        head: the number of the head; None for all of them, or where the hook has none.
    """

    hook_name: str
    head: int | None = None

    @classmethod
    def of(cls, name: str) -> "HookView":
        """The view that a name stands for."""
        found = HEAD.fullmatch(name)
        return cls(name) if found is None else cls(found["hook"], int(found["head"]))

    def __str__(self) -> str:
        return self.hook_name if self.head is None else f"{self.hook_name}[{self.head}]"

    def read(self, model: Any, output: Tensor) -> Tensor:
        """The view's part of a hook's activation.

        Args:
            model: the hooked model, which knows the width of a head where the hook does not.
            output: [rows, context, width], or [rows, context, heads, d_head].

        Returns:
            [rows, context, width], a view of output where it can be one.

        Raises:
            ValueError: the hook has no such head.
        """
        if self.head is not None:
            return self._by_head(model, output)[:, :, self.head]
        return output.flatten(2) if output.ndim == DIMENSIONS_WITH_HEADS else output

    def write(self, model: Any, output: Tensor, new: Tensor) -> Tensor:
        """A hook's activation with the view's part replaced; the other heads stay as they are.

        Args:
            model, output: as read takes them.
            new: as read gives it.

        Returns:
            A tensor of output's shape.
        """
        if self.head is None:
            return new.view(output.shape)
        changed = self._by_head(model, output).clone()
        changed[:, :, self.head] = new
        return changed.view(output.shape)

    def _by_head(self, model: Any, output: Tensor) -> Tensor:
        """[rows, context, heads, d_head]; a bridge has heads side by side in its hooks."""
        if output.ndim != DIMENSIONS_WITH_HEADS:
            d_head = getattr(getattr(model, "cfg", None), "d_head", None)
            if d_head is None or output.shape[-1] % d_head:
                raise ValueError(
                    f"{self}: the hook has {output.shape[-1]} dimensions and no heads. Give a "
                    "hook with heads, as attn.hook_z."
                )
            output = output.unflatten(-1, (-1, d_head))
        if self.head is None or self.head >= output.shape[2]:
            raise ValueError(f"{self}: the hook has heads 0 to {output.shape[2] - 1}.")
        return output
