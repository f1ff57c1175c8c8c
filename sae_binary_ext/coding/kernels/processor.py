"""Which numbers the processor multiplies faster than float32; torch multiplies others slower."""

from functools import cache

import torch


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return _has("avx512_bf16") or _has("amx_bf16")


def multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of whole numbers of a byte."""
    return _has("avx512_vnni") or _has("amx_int8")


@cache
def _has(capability: str) -> bool:
    # Older versions of torch cannot say.
    return getattr(torch.cpu, "get_capabilities", dict[str, bool])().get(capability, False)
