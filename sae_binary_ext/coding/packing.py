"""Packed codes: one bit for each latent."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding.kernels.processor import uses_kernel

# Read eight bytes of 0 or 1 as one integer and multiply it by this number. The product's highest
# byte then holds the eight bits, with the first byte's bit lowest. No two bits of the product
# overlap.
_GATHER_BITS = 0x0102040810204080


def packed_width(latents: int) -> int:
    """Number of bytes of a packed code."""
    return -(-latents // 8)


def pack(codes: Tensor) -> Tensor:
    """Codes [..., latents], packed to a bit each: uint8 [..., packed_width(latents)].

    The codes may have any dtype; each value but 0 counts as 1. Latent j is bit j % 8 of byte j //
    8, as in numpy.packbits(bitorder="little"). Bits past the last latent are 0.
    """
    active = codes if codes.dtype is torch.bool else codes != 0
    if uses_kernel("pack_bits", active) and active.ndim == 2:
        from sae_binary_ext.coding.kernels.triton import pack_bits

        return pack_bits(active)
    active = F.pad(active, (0, -active.shape[-1] % 8)).contiguous()
    eights = active.view(torch.uint8).view(torch.int64)
    return ((eights * _GATHER_BITS) >> 56).to(torch.uint8)


def pack_indices(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """As pack, but from 0/1 codes [..., m] in index form; no array of all latents is made.

    index, int64 [..., m], holds the latent of each code; no latent appears twice in a row.
    """
    shape = (*codes.shape[:-1], packed_width(latents))
    packed = torch.zeros(shape, dtype=torch.uint8, device=codes.device)
    bits = (codes != 0).to(torch.uint8) << (index % 8).to(torch.uint8)
    return packed.scatter_add_(-1, index // 8, bits)


def unpack(packed: Tensor, latents: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Codes [..., latents], 0 or 1, from packed codes, uint8 [..., packed_width(latents)].

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
