"""Packed codes: one bit a latent."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Eight bytes of 0 or 1, read as one integer, times this: their bits are the product's highest byte,
# the first byte's the lowest. No two bits of the product meet.
_GATHER_BITS = 0x0102040810204080


def packed_width(latents: int) -> int:
    """Bytes of a packed code."""
    return -(-latents // 8)


def pack(codes: Tensor) -> Tensor:
    """Codes, a bit each.

    Args:
        codes: [..., latents], bool or 0/1 of any dtype; each value but 0 counts as 1.

    Returns:
        uint8 [..., packed_width(latents)]. Latent j is bit j % 8 of byte j // 8, as in
        numpy.packbits(bitorder="little"); bits past the last latent are 0.
    """
    active = codes if codes.dtype is torch.bool else codes != 0
    active = F.pad(active, (0, -active.shape[-1] % 8)).contiguous()
    eights = active.view(torch.uint8).view(torch.int64)
    return ((eights * _GATHER_BITS) >> 56).to(torch.uint8)


def pack_indices(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """The same for codes in index form, without an array of latents.

    Args:
        codes: [..., m], 0/1.
        index: int64 [..., m], the latents that the codes belong to, none twice in a row.
        latents: number of latents.

    Returns:
        uint8 [..., packed_width(latents)].
    """
    packed = torch.zeros(
        (*codes.shape[:-1], packed_width(latents)), dtype=torch.uint8, device=codes.device
    )
    bits = (codes != 0).to(torch.uint8) << (index % 8).to(torch.uint8)
    return packed.scatter_add_(-1, index // 8, bits)


def unpack(packed: Tensor, latents: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The codes that pack or pack_indices packed.

    Args:
        packed: uint8 [..., packed_width(latents)].
        latents: number of latents.
        dtype: of the codes.

    Returns:
        [..., latents], 0 or 1.

    Raises:
        ValueError: packed does not have the width or dtype of so many latents' codes.
    """
    if packed.dtype is not torch.uint8 or packed.shape[-1] != packed_width(latents):
        raise ValueError(
            f"packed codes of dtype {packed.dtype} and shape {tuple(packed.shape)}: {latents} "
            f"latents take uint8 and {packed_width(latents)} in the last dimension."
        )
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> places) & 1
    return bits.flatten(-2)[..., :latents].to(dtype)
