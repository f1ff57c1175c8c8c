"""Tensors whose values are computed when an operation first asks for them."""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from typing_extensions import override


class Deferred(Tensor):
    """A tensor that the hosts hand on and may never read, such as a step's pre-activations.

    Shape, dtype and device are there at once. The first operation on it computes the values, which
    are then kept; what operations return are plain tensors. What asks for its memory itself
    (data_ptr) wants one of these, such as detach().
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None

    # The default would turn what operations return into this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @override
    def __new__(
        cls,
        make: Callable[[], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """A tensor to be computed later.

        Args:
            make: computes the values, a contiguous tensor of this shape, dtype and device. What
                it reads must not change in between.
            shape: of the tensor.
            dtype: of the tensor.
            device: of the tensor.
        """
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
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

    # What is no operation to torch, and would find no values.
    @override
    def numpy(self, *, force: bool = False) -> Any:
        return self._plain().numpy(force=force)

    @override
    def tolist(self) -> Any:
        return self._plain().tolist()

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    @property
    def is_computed(self) -> bool:
        """Whether an operation has asked for the values."""
        return self._made is not None

    def _plain(self) -> Tensor:
        return self.view_as(self)

    @torch.no_grad()
    def _computed(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
            del self._make
        return self._made


class CodesForm(Protocol):
    """Codes of a batch in a form that costs less than an array of all of them."""

    def dense(self) -> Tensor:
        """Codes [tokens, latents], 0.0 or 1.0, in memory of their own."""
        ...

    def latents_per_token(self) -> Tensor:
        """How many latents are active on each token, int64 [tokens]."""
        ...

    def tokens_per_latent(self) -> Tensor:
        """On how many tokens each latent is active, int64 [latents]."""
        ...


class DeferredCodes(Deferred):
    """Codes [tokens, latents] whose statistics do not ask for their values.

    What SAELens' trainer reads of a step's codes, `codes.bool().float().sum(0)`, is told from their
    form. On the CPU the arrays of such a line, each in fresh memory, took a fifth of a training
    step or more (4608 latents, k = 32).
    """

    _form: CodesForm

    @override
    def __new__(
        cls,
        form: CodesForm,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Codes to be computed later.

        Args:
            form: of the codes; it must not change in between.
            shape: tokens and latents.
            dtype: of the tensor of codes.
            device: of the form.
        """
        codes = super().__new__(cls, lambda: form.dense().to(dtype), shape, dtype, device)
        codes._form = form
        return codes

    @classmethod
    @override
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        codes = args[0] if args else None
        if isinstance(codes, DeferredCodes) and not codes.is_computed:
            told = codes._told(func, args[1:], kwargs or {})
            if told is not None:
                return told
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _told(self, func: Any, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What an operation returns where the form alone can tell, else None.

        Args:
            func: of torch.ops.aten.
            others: arguments that come after this tensor, without those of a default's value.
            kwargs: as func takes them.
        """
        if func is torch.ops.aten._to_copy.default and kwargs.keys() == {"dtype"}:
            return DeferredCodes(self._form, self.shape, kwargs["dtype"], self.device)
        if func is torch.ops.aten.sum.dim_IntList and len(others) == 1 and len(others[0]) == 1:
            over_tokens = others[0][0] in (0, -2)
            form = self._form
            counts = form.tokens_per_latent() if over_tokens else form.latents_per_token()
            return counts.to(torch.empty(0, dtype=self.dtype).sum(0, **kwargs).dtype)
        return None
