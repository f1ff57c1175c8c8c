"""Packed codes: one bit a latent."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Read eight bytes of 0 or 1 as one integer, and multiply it by this number. The product's highest
# byte has their bits, the first byte's lowest. No two bits of the product meet.
_GATHER_BITS = 0x0102040810204080


def packed_width(latents: int) -> int:
    """Bytes of a packed code."""
    return -(-latents // 8)


def pack(codes: Tensor) -> Tensor:
    """Codes [..., latents], a bit each: uint8 [..., packed_width(latents)].

    The codes are bool or any dtype; each value but 0 counts as 1. Latent j is bit j % 8 of byte
    j // 8, as in numpy.packbits(bitorder="little"). Bits past the last latent are 0.
    """
    active = codes if codes.dtype is torch.bool else codes != 0
    active = F.pad(active, (0, -active.shape[-1] % 8)).contiguous()
    eights = active.view(torch.uint8).view(torch.int64)
    return ((eights * _GATHER_BITS) >> 56).to(torch.uint8)


def pack_indices(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """As pack, of 0/1 codes [..., m] in index form, without an array of all latents.

    index is int64 [..., m], the latents that the codes belong to, none twice in a row.
    """
    shape = (*codes.shape[:-1], packed_width(latents))
    packed = torch.zeros(shape, dtype=torch.uint8, device=codes.device)
    bits = (codes != 0).to(torch.uint8) << (index % 8).to(torch.uint8)
    return packed.scatter_add_(-1, index // 8, bits)


def unpack(packed: Tensor, latents: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The codes [..., latents], 0 or 1, of packed codes, uint8 [..., packed_width(latents)].

    Raises:
        ValueError: packed does not have the width or dtype of packed codes of that many latents.
    """
    if packed.dtype is not torch.uint8 or packed.shape[-1] != packed_width(latents):
        raise ValueError(
            f"packed codes of dtype {packed.dtype} and shape {tuple(packed.shape)}: {latents} "
            f"latents take uint8 and {packed_width(latents)} in the last dimension."
        )
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> places) & 1
    return bits.flatten(-2)[..., :latents].to(dtype)
