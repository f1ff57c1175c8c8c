"""An activation as a coder reads it: one vector for each token, of all heads or of one.

Some hooks hold one vector for each head, [rows, context, heads, d_head]: attn.hook_z, hook_q,
hook_k and hook_v. SAELens trains a coder on all heads side by side, or on the head that
hook_head_index names. We write such a head as an index: blocks.3.attn.hook_z[5].
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_HEAD = re.compile(r"(?P<hook>.+)\[(?P<head>\d+)\]")
# A bridge holds the heads of these hooks side by side: its attn.hook_z is attn.o.hook_in.
_HEADS_SIDE_BY_SIDE = re.compile(r".*\battn\.(hook_[qkvz]|[qkv]\.hook_out|o\.hook_in)")
# [rows, context, heads, d_head]
_DIMENSIONS_WITH_HEADS = 4


@dataclass(frozen=True)
class HookView:
    """A hook, or one head of it. If head is None, the view is of the whole activation."""

    hook_name: str
    head: int | None = None

    @classmethod
    def of(cls, name: str) -> "HookView":
        """The view with this name."""
        found = _HEAD.fullmatch(name)
        return cls(name) if found is None else cls(found["hook"], int(found["head"]))

    def __str__(self) -> str:
        return self.hook_name if self.head is None else f"{self.hook_name}[{self.head}]"

    def read(self, model: Any, output: Tensor) -> Tensor:
        """The view's part of a hook's activation.

        Args:
            model: the hooked model. Its config has the width of a head.
            output: [rows, context, width] or [rows, context, heads, d_head].

        Returns:
            [rows, context, width]; shares memory with output if possible.

        Raises:
            ValueError: the hook has no heads, or no head of this number.
        """
        if self.head is not None:
            return self._by_head(model, output)[:, :, self.head]
        return output.flatten(2) if output.ndim == _DIMENSIONS_WITH_HEADS else output

    def write(self, model: Any, output: Tensor, new: Tensor) -> Tensor:
        """A copy of a hook's activation with new, in the shape read returns, as the view's part."""
        if self.head is None:
            return new.view(output.shape)
        changed = self._by_head(model, output).clone()
        changed[:, :, self.head] = new
        return changed.view(output.shape)

    def _by_head(self, model: Any, output: Tensor) -> Tensor:
        """The activation as [rows, context, heads, d_head]."""
        if output.ndim != _DIMENSIONS_WITH_HEADS:
            d_head = getattr(getattr(model, "cfg", None), "d_head", None)
            split = _HEADS_SIDE_BY_SIDE.fullmatch(self.hook_name) and d_head
            if not split or output.shape[-1] % split:
                raise ValueError(
                    f"{self}: the hook's activations are {output.shape[-1]} wide and have no "
                    "heads. Give a hook with heads, for example blocks.0.attn.hook_z, or leave "
                    "out the index of the head."
                )
            output = output.unflatten(-1, (-1, split))
        if self.head is None or self.head >= output.shape[2]:
            raise ValueError(
                f"{self}: the hook has {output.shape[2]} heads. Give a head from 0 to "
                f"{output.shape[2] - 1}."
            )
        return output
