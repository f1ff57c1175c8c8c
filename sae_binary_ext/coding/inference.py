"""Codes of many tokens for storing and looking up, without an array of tokens x latents."""

import torch
from torch import Tensor

from sae_binary_ext.coding.codes import pack, pack_indices
from sae_binary_ext.coding.encode import pick_above, pre_activations_in_parts
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule, ones_first, select_codes


@torch.no_grad()
def infer_indices(
    centred: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    log_threshold: Tensor,
    rule: CodeRule,
) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form.

    Args:
        centred: [..., d_in], the coder's input minus what it subtracts.
        encoder_weight: [d_in, latents].
        encoder_bias: [latents].
        log_threshold: [latents].
        rule: selection and surrogate.

    Returns:
        Codes, 0.0 or 1.0, and the latents they belong to, int64, both [..., m]; see
        selection.active_latents.
    """
    threshold = log_threshold.exp()
    rows = centred.reshape(-1, centred.shape[-1])
    parts = pre_activations_in_parts(rows, encoder_weight, encoder_bias)
    if SELECTIONS[rule.selection].pick is not None:
        found = [pick_above(pre, threshold, rule) for pre in parts]
        codes, index = (torch.cat(each) for each in zip(*found, strict=True))
        codes = codes > 0
    else:
        codes, index = ones_first(torch.cat([_active(pre, threshold, rule) for pre in parts]))
    shape = (*centred.shape[:-1], codes.shape[-1])
    return codes.to(encoder_weight.dtype).view(shape), index.view(shape)


@torch.no_grad()
def infer_packed(
    centred: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    log_threshold: Tensor,
    rule: CodeRule,
) -> Tensor:
    """Noise-free codes, a bit each; arguments as infer_indices takes them.

    Returns:
        uint8 [..., packed_width(latents)]; see codes.pack.
    """
    threshold = log_threshold.exp()
    latents = encoder_weight.shape[1]

    picks = SELECTIONS[rule.selection].pick is not None

    def packed(pre: Tensor) -> Tensor:
        if picks:
            margin, index = pick_above(pre, threshold, rule)
            return pack_indices(margin > 0, index, latents)
        return pack(_active(pre, threshold, rule))

    rows = centred.reshape(-1, centred.shape[-1])
    parts = pre_activations_in_parts(rows, encoder_weight, encoder_bias)
    return torch.cat([packed(pre) for pre in parts]).view(*centred.shape[:-1], -1)


def _active(pre: Tensor, threshold: Tensor, rule: CodeRule) -> Tensor:
    """Codes, bool [tokens, latents]."""
    if SELECTIONS[rule.selection].alone:
        return pre > threshold
    return select_codes(pre - threshold, rule, noise=False) != 0
