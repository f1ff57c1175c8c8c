"""Sparse codes whose sums over tokens are known."""

from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override


class CountedCodes(Tensor):
    """Codes [tokens, latents] in sparse COO; every entry is 0 or 1.

    Each step, SAELens' trainer computes `codes.bool().float().sum(0)` twice. torch sorts the
    entries anew for each sum, on the CPU for up to a fifth of a step (2304 latents, k = 128). Such
    a sum is instead told from counts. Every other operation returns a plain tensor.
    """

    _counts: Tensor

    # The default would turn what operations return into this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def of(cls, codes: Tensor, counts: Tensor) -> Self:
        """codes with their sums over tokens: counts, [latents], without gradient."""
        # as_subclass refuses sparse tensors.
        counted = Tensor._make_subclass(cls, codes)
        counted._counts = counts
        return counted

    @override
    def bool(self, *args: Any, **kwargs: Any) -> "CountedCodes":
        return self.of(super().bool(*args, **kwargs), self._counts)

    @override
    def float(self, *args: Any, **kwargs: Any) -> "CountedCodes":
        return self.of(super().float(*args, **kwargs), self._counts)

    @override
    def sum(self, *args: Any, **kwargs: Any) -> Tensor:
        over_tokens = not kwargs and len(args) == 1 and args[0] in (0, -2)
        if over_tokens and self.dtype.is_floating_point:
            return self._counts.to(self.dtype)
        return super().sum(*args, **kwargs)

    # Both would copy an object of this class by its memory, which a sparse tensor does not have.
    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.detach().__deepcopy__(memo)

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)
