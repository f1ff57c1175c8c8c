"""AuxK for binary codes: dead latents learn from the error that the other latents leave.

Gao et al., Scaling and evaluating sparse autoencoders (arXiv 2406.04093), appendix A.2. Here the
dead latents with the largest margins get codes of 1.
"""

import torch
from torch import Tensor

from sae_binary_ext.coding.decode import decode_indices
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
        dead: bool [latents], at least one True.
        residual: [tokens, d_out], target minus reconstruction; no gradient flows into it.
        decoder_weight: [latents, d_out].
        rule: the code rule, whose surrogate is used.
    """
    dead_latents = dead.nonzero().squeeze(-1)
    most = residual.shape[-1] // 2
    taken = min(most, len(dead_latents))
    values, place = margin[:, dead_latents].topk(taken, dim=-1, sorted=False)
    codes = fired(values, rule.surrogate, rule.surrogate_temperature)
    picks = Picks(dead_latents[place], len(decoder_weight))
    predicted = decode_indices(codes, picks, decoder_weight, torch.zeros_like(residual[0]))
    error = predicted - residual.detach()
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    return error.square().sum() * (taken / most)
