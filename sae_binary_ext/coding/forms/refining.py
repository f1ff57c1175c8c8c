"""Refines codes: flips single latents as long as the cost of a token falls.

The cost of codes h is |target - h @ W|^2 + sum of price[j] * h[j]: squared error plus the price of
the bits. A linear encoder decides on each latent alone; here a latent is seen beside the others
that fire. This is coordinate descent on binary codes (iterated conditional modes; Besag, On the
Statistical Analysis of Dirty Pictures, 1986), with several flips for each product with W.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.processor import certainly_none, knows_values
from sae_binary_ext.coding.kernels.sparse import code_matrix

# Most latents that one pass flips on a token. With 8 or 32, equally many flips in all reached
# about the same cost.
FLIPS_PER_PASS = 16
# A block's largest array is [tokens, FLIPS_PER_PASS, d_out].
TOKENS_PER_BLOCK = 512


@torch.no_grad()
def refine(
    codes: Tensor, target: Tensor, decoder_weight: Tensor, price: Tensor, passes: int
) -> Tensor:
    """Codes of a lower cost, [tokens, latents] in the dtype of codes; no gradient.

    The cost of no token rises. More passes lower it further, until no flip of one latent does.

    Args:
        codes: [tokens, latents], 0/1.
        target: [tokens, d_out], what the decoder rows of the active latents should add up to.
        decoder_weight: W, [latents, d_out].
        price: [latents], cost of a code of 1, in squared units of target (see price_of_bits).
        passes: products with W; each is followed by at most FLIPS_PER_PASS flips on a token.
    """
    # In bfloat16, the costs of many flips would differ by rounding alone.
    wide = torch.promote_types(codes.dtype, torch.float32)
    weight, price = decoder_weight.to(wide), price.to(wide)
    dictionary = _Dictionary(weight, 2 * weight.T, weight.square().sum(1), price)
    found: list[Tensor] = []
    for block, wanted in zip(
        *(each.split(TOKENS_PER_BLOCK) for each in (codes, target)), strict=True
    ):
        sign = 1 - 2 * block.to(wide)
        residual = wanted.to(wide) - code_matrix(block != 0).times(weight)
        tokens = torch.arange(len(block), device=block.device)
        for _ in range(passes):
            flipped = _flip(sign, residual, tokens, dictionary)
            # No flip of one latent helps a token that the last pass left as it was.
            tokens = tokens[flipped] if knows_values(flipped) else tokens
            if not len(tokens):
                break
        found.append((sign < 0).to(codes.dtype))
    return torch.cat(found)


class _Dictionary(NamedTuple):
    """What the passes of refine share.

    weight is W [latents, d_out], twice 2 W [d_out, latents], norms |W[j]|^2 and price [latents].
    """

    weight: Tensor
    twice: Tensor
    norms: Tensor
    price: Tensor


def _flip(sign: Tensor, residual: Tensor, tokens: Tensor, dictionary: _Dictionary) -> Tensor:
    """One pass of refine over some tokens of a block. Changes sign and residual in place.

    Args:
        sign: [block, latents], 1 for a code of 0 and -1 for a code of 1.
        residual: [block, d_out], what the active latents leave over of the target.
        tokens: [tokens], rows of the block.
        dictionary: see _Dictionary.

    Returns:
        Which tokens had a flip that lowers their cost, bool [tokens].
    """
    here = sign[tokens]
    # Flipping latent j changes h by sign[j], and lowers the cost by this gain.
    gain = torch.addmm(-dictionary.price, residual[tokens], dictionary.twice)
    gain = gain.mul_(here).sub_(dictionary.norms)
    gain, latent = gain.topk(min(FLIPS_PER_PASS, gain.shape[1]), dim=1)
    direction = here.gather(1, latent)
    # The flips of a pass change each other's gains.
    rows = dictionary.weight[latent]
    signs = direction[..., None] * direction[:, None]
    overlap = torch.bmm(rows, rows.transpose(1, 2)).mul_(signs).mul_(2)
    flips, number = torch.zeros_like(gain), torch.arange(len(gain), device=gain.device)
    for _ in range(gain.shape[1]):
        best, place = gain.max(1, keepdim=True)
        helps = best > 0
        if certainly_none(helps):
            break
        flip = helps.to(gain.dtype)
        flips.scatter_add_(1, place, flip)
        lost = overlap[number, place.squeeze(1)]
        gain = gain.addcmul(flip, lost, value=-1).masked_fill_(flips > 0, -torch.inf)
    residual[tokens] -= torch.bmm((direction * flips)[:, None], rows).squeeze(1)
    sign[tokens[:, None], latent] = direction * (1 - 2 * flips)
    return flips.any(1)
