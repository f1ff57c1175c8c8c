"""AuxK for binary codes: dead latents learn from the error that the other latents leave.

Gao et al., Scaling and evaluating sparse autoencoders (arXiv 2406.04093), appendix A.2. With codes
of 0 and 1, the dead latents with the largest margins are taken as fired.
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
    """Squared error of the dead latents' reconstruction of the residual.

    Each token takes the dead latents with the largest margins, half as many as the output has
    dimensions. If fewer are dead, the error shrinks in proportion.

    Args:
        margin: [tokens, latents], pre-activations minus thresholds; its gradient is the rule's
            surrogate at each margin taken.
        dead: bool [latents], at least one True.
        residual: [tokens, d_out], target minus reconstruction; no gradient flows into it.
        decoder_weight: [latents, d_out].
        rule: gives the surrogate.

    Returns:
        A scalar summed over tokens, float32 or wider, in squared units of the residual.
    """
    dead_latents = dead.nonzero().squeeze(-1)
    most = residual.shape[-1] // 2
    taken = min(most, len(dead_latents))
    values, place = margin[:, dead_latents].topk(taken, dim=-1, sorted=False)
    codes = fired(values, rule.surrogate, rule.surrogate_temperature)
    no_bias = torch.zeros_like(residual[0])
    picks = Picks(dead_latents[place], len(decoder_weight))
    predicted = decode_indices(codes, picks, decoder_weight, no_bias)
    error = predicted - residual.detach()
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    return error.square().sum() * (taken / most)
