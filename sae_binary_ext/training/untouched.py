"""Tells whether a parameter has changed since initialisation."""

import torch
from torch import Tensor, nn

# Numbers in one sum: a fingerprint takes 1/65536 of the parameter's memory.
PART = 2**16
# The dtypes that a module may be cast to between initialisation and training.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class InitialParameters:
    """Remembers a module's initial parameters without a copy of them, and compares bits.

    It sees writes through `.data`, which torch's own version counter misses. A move to another
    device or a cast to another floating dtype is no change.

    Args:
        module: just initialised. Parameters on the meta device have no values. They count as
            changed as soon as they have values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._marks = {
            name: _marks(parameter.detach())
            for name, parameter in module.named_parameters()
            if not parameter.is_meta
        }

    def changed(self, module: nn.Module) -> list[str]:
        """Names of the parameters that changed, of this module or of one with the same names."""
        return [
            name
            for name, parameter in module.named_parameters()
            if not self._is_initial(name, parameter.detach())
        ]

    def _is_initial(self, name: str, values: Tensor) -> bool:
        mark = self._marks.get(name, {}).get(values.dtype)
        if mark is None or values.is_meta:
            return False
        return torch.equal(mark, _fingerprint(values))


def _marks(values: Tensor) -> dict[torch.dtype, Tensor]:
    """The fingerprint in each dtype that the values may be cast to."""
    dtypes = {values.dtype, *DTYPES}
    if values.device.type == "mps":
        dtypes.discard(torch.float64)  # mps lacks it
    return {dtype: _fingerprint(values, dtype) for dtype in dtypes}


def _fingerprint(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """int64 [parts] on the CPU: the bits of each part, weighted at random and summed modulo 2^64.

    Whole numbers, so the result does not depend on the device or the order of the sum.
    """
    flat = values.flatten()
    generator = torch.Generator().manual_seed(0)
    # Odd: a single changed number always changes the sum.
    weights = torch.randint(-(2**62), 2**62, (min(PART, len(flat)),), generator=generator) * 2 + 1
    weights = weights.to(flat.device)
    sums = [
        (_bits(part if dtype is None else part.to(dtype)) * weights[: len(part)]).sum()
        for part in flat.split(PART)
    ]
    return torch.stack(sums).cpu()


def _bits(values: Tensor) -> Tensor:
    return values.view(_AS_INTEGERS[values.dtype.itemsize]).to(torch.int64)
