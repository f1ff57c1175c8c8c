"""A tensor whose values are computed when an operation first asks for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from typing_extensions import override


class Deferred(Tensor):
    """A tensor that the hosts hand on and may never read, such as a step's pre-activations.

    Shape, dtype and device are there at once. The first operation on it computes the values, which
    are then kept; what operations return are plain tensors.
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None

    # The default would turn what operations return into this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @override
    def __new__(
        cls, make: Callable[[], Tensor], shape: tuple[int, ...], like: Tensor
    ) -> "Deferred":
        """A tensor to be computed later.

        Args:
            make: computes the values, a contiguous tensor of this shape and of like's dtype and
                device. What it reads must not change in between.
            shape: of the tensor.
            like: has its dtype and device.
        """
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        deferred._make, deferred._made = make, None
        return deferred

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(
            *tree_map_only(Deferred, Deferred._computed, args),
            **tree_map_only(Deferred, Deferred._computed, kwargs or {}),
        )

    @property
    def is_computed(self) -> bool:
        """Whether an operation has asked for the values."""
        return self._made is not None

    @torch.no_grad()
    def _computed(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
            del self._make
        return self._made
