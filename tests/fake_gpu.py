"""A GPU without a GPU: fake CUDA tensors, and a record of each operation that waits for the GPU.

torch's FakeTensorMode runs the code of a GPU on tensors without values, and refuses operations on
tensors of two devices. An operation that reads a value on the host gets a stand-in for the value
here. It is noted with the function of the package that asked for it.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from sae_binary_ext.coding.forms.counted import CountedCodes
from sae_binary_ext.coding.kernels import seeding

PACKAGE = "sae_binary_ext."
aten = torch.ops.aten


def _no_rows(x: Tensor) -> Tensor:
    # As if one row of x had been found: the number of rows must not matter.
    return torch.zeros(1, x.ndim, dtype=torch.int64, device=x.device)


# What an operation that reads values returns here.
STAND_INS: dict[Any, Any] = {
    aten._local_scalar_dense.default: lambda x: 1.0 if x.dtype.is_floating_point else 1,
    aten.equal.default: lambda *_: True,
    aten.nonzero.default: _no_rows,
}
COPIES = (aten._to_copy.default, aten.copy_.default)


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the GPU.

    A copy between host and GPU waits too, unless it is non_blocking.

    Attributes:
        places: the operations that waited, by the name of the package's function that asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, set[str]] = defaultdict(set)

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten.index.Tensor and _has_mask(args[1]):
            self._note(func)
            rows = [_no_rows(each)[:, 0] for each in args[1] if each is not None]
            return func(args[0], rows)
        if func in STAND_INS:
            if args[0].is_cuda:
                self._note(func)
            return STAND_INS[func](*args)
        result = func(*args, **kwargs)
        # torch fills masked entries with a CPU scalar without a wait.
        fills = func is aten.index_put_.default and _has_mask(args[1])
        if func not in COPIES and not fills and _mixes_devices(args):
            self._note(f"{func} with a CPU tensor")
        if func in COPIES and not (kwargs.get("non_blocking") or len(args) > 2):
            source = args[-1]
            if source.is_cuda != result.is_cuda:
                self._note(func)
        return result

    def _note(self, func: object) -> None:
        self.places[_caller()].add(str(func))


def _mixes_devices(args: tuple[Any, ...]) -> bool:
    """Whether a CPU tensor stands beside CUDA tensors; torch allows one without dimensions."""
    return len({each.is_cuda for each in args if isinstance(each, Tensor)}) > 1


def _has_mask(index: Any) -> bool:
    return any(each is not None and each.dtype is torch.bool for each in index)


def _caller() -> str:
    """The innermost function of the package that is running, or "host"."""
    frame = inspect.currentframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(PACKAGE):
            return f"{module.removeprefix(PACKAGE)}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "host"


class StandInEvent:
    """A stand-in for a CUDA event whose copy has not ended yet."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


class StandInCounted:
    """A stand-in for CountedCodes, which cannot be made of fake tensors, in SAELens' trainer."""

    is_sparse = False

    def __init__(self, codes: Tensor, counts: Tensor) -> None:
        self.codes, self.counts, self.dtype = codes, counts, codes.dtype
        self.device, self.shape = codes.device, codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def detach(self) -> "StandInCounted":
        return self

    def bool(self) -> "StandInCounted":
        return self

    def float(self) -> "StandInCounted":
        return StandInCounted(self.codes.float(), self.counts)

    def sum(self, _: int) -> Tensor:
        return self.counts.to(self.codes.dtype)


def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """As Tensor.backward, whose engine needs a CUDA driver: calls the graph's nodes in turn."""
    root: Any = loss.grad_fn
    seen, stack, missing = {root}, [root], defaultdict(int)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                missing[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    given: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    given[root][0] = torch.ones_like(loss)
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            gradients = _call(node, given.pop(node, {}))
            # Gradients past the last tensor belong to other arguments of a custom function.
            for (after, place), gradient in zip(node.next_functions, gradients, strict=False):
                if after is None:
                    continue
                if gradient is not None:
                    gradient = _as_wanted(gradient, after._input_metadata[place])
                    before = given[after].get(place)
                    given[after][place] = gradient if before is None else before + gradient
                missing[after] -= 1
                if not missing[after]:
                    ready.append(after)


def _call(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that a node of autograd's graph returns."""
    if not given:
        return (None,) * len(node.next_functions)
    if hasattr(node, "variable"):
        parameter, (gradient,) = node.variable, given.values()
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return ()
    arguments = [
        given[place] if place in given else torch.zeros(each.shape, dtype=each.dtype, device="cuda")
        for place, each in enumerate(node._input_metadata)
    ]
    made = node.apply(*arguments) if isinstance(node, BackwardCFunction) else node(*arguments)
    return made if isinstance(made, tuple) else (made,)


def _as_wanted(gradient: Tensor, wanted: Any) -> Tensor:
    """A gradient in the shape and dtype that autograd's engine would give it."""
    assert gradient.device.type == wanted.device.type, "a gradient is on another device"
    return gradient.sum_to_size(wanted.shape).to(wanted.dtype)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Inside the block, device "cuda" makes fake tensors, with a GPU or without."""
    patches = (
        patch.object(torch.cuda, "Event", StandInEvent),
        patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(CountedCodes, "of", StandInCounted),
        patch.object(Tensor, "backward", backward),
        # A GPU's own generator needs a driver.
        patch.object(seeding, "draws_on_gpu", lambda _: False),
    )
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(cast(Any, each))
        stack.enter_context(FakeTensorMode())
        yield
