"""AuxK for binary codes: dead latents learn from the error that the other latents leave.

Gao et al., Scaling and evaluating sparse autoencoders (arXiv 2406.04093), appendix A.2. Here the
dead latents with the largest margins get codes of 1.
"""

import torch
from torch import Tensor

from sae_binary_ext.coding.decode import decode_indices
from sae_binary_ext.coding.kernels.processor import knows_values
from sae_binary_ext.coding.kernels.sparse import Picks
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import fired


def auxiliary_error(
    margin: Tensor, dead: Tensor, residual: Tensor, decoder_weight: Tensor, rule: CodeRule
) -> Tensor:
    """Squared error of the dead latents' reconstruction of the residual, summed over tokens.

    Each token takes the d_out / 2 dead latents with the largest margins. If fewer latents are dead,
    the error is scaled down in proportion. The result is a scalar, float32 or wider, in squared
    units of the residual.

    Args:
        margin: [tokens, latents], pre-activations minus thresholds, with the surrogate's gradient.
        dead: bool [latents], at least one True on the CPU. On a GPU, the error is 0 if none is.
        residual: [tokens, d_out], target minus reconstruction; no gradient flows into it.
        decoder_weight: [latents, d_out].
        rule: the code rule, whose surrogate is used.
    """
    most = residual.shape[-1] // 2
    pick = _pick_of_known if knows_values(dead) else _pick_of_any
    values, index, taken = pick(margin, dead, most)
    codes = fired(values, rule.surrogate, rule.surrogate_temperature)
    if not knows_values(dead):
        codes = codes * dead[index]
    picks = Picks(index, len(decoder_weight))
    predicted = decode_indices(codes, picks, decoder_weight, torch.zeros_like(residual[0]))
    error = predicted - residual.detach()
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    return error.square().sum() * (taken / most)


def _pick_of_known(margin: Tensor, dead: Tensor, most: int) -> tuple[Tensor, Tensor, int]:
    """Margins of the dead latents to take and these latents, both [tokens, m], and m."""
    latents = dead.nonzero().squeeze(-1)
    taken = min(most, len(latents))
    values, place = margin[:, latents].topk(taken, dim=-1, sorted=False)
    return values, latents[place], taken


def _pick_of_any(margin: Tensor, dead: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """As _pick_of_known, but without reading the number m: filled up with other latents."""
    of_dead = margin.detach().masked_fill(~dead, -torch.inf)
    index = of_dead.topk(min(most, len(dead)), dim=-1, sorted=False).indices
    return margin.gather(-1, index), index, dead.sum().clamp_max(most)
