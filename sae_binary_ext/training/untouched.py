"""Finds the parameters that have changed since initialisation."""

import torch
from torch import Tensor, nn

# Number of values in one sum: a fingerprint has one number for each 65536 values of a parameter.
PART = 2**16
# The dtypes that a user may cast a module to between initialisation and training.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class InitialParameters:
    """Remembers the bits of a module's initial parameters without a copy of them.

    A write through `.data`, which torch's version counter misses, counts as a change. A move to
    another device or a cast to another floating dtype does not. A parameter on the meta device has
    no values yet; it counts as changed once it has values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._marks = {
            name: _marks(parameter.detach())
            for name, parameter in module.named_parameters()
            if not parameter.is_meta
        }

    def changed(self, module: nn.Module) -> list[str]:
        """Names of the parameters that changed. The argument may be a copy of the first module."""
        parameters = module.named_parameters()
        return [name for name, values in parameters if not self._is_initial(name, values.detach())]

    def _is_initial(self, name: str, values: Tensor) -> bool:
        mark = self._marks.get(name, {}).get(values.dtype)
        return mark is not None and not values.is_meta and torch.equal(mark, _fingerprint(values))


def _marks(values: Tensor) -> dict[torch.dtype, Tensor]:
    """One fingerprint for each dtype that the values may be cast to."""
    dtypes = {values.dtype, *DTYPES}
    if values.device.type == "mps":
        dtypes.discard(torch.float64)  # mps has no float64
    return {dtype: _fingerprint(values, dtype) for dtype in dtypes}


def _fingerprint(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """int64 [parts] on the CPU: the bits of each part, weighted at random and summed modulo 2^64.

    Integer sums do not depend on the device or on the order of their terms.
    """
    flat = values.flatten()
    generator = torch.Generator().manual_seed(0)
    # The weights are odd, so that a change of one value always changes the sum.
    weights = torch.randint(-(2**62), 2**62, (min(PART, len(flat)),), generator=generator) * 2 + 1
    weights = weights.to(flat.device)
    # Each part overwrites the same memory: freed blocks between the sums would pile up in the heap.
    cast, product = torch.empty_like(weights, dtype=dtype or flat.dtype), torch.empty_like(weights)
    sums: list[Tensor] = []
    for part in flat.split(PART):
        size = len(part)
        bits = cast[:size].copy_(part).view(_AS_INTEGERS[cast.dtype.itemsize])
        sums.append(product[:size].copy_(bits).mul_(weights[:size]).sum())
    return torch.stack(sums).cpu()
