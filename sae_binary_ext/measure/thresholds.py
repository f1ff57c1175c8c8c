"""Fits thresholds to a coder whose latents compete, so that each latent fires by itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.saelens.refitting import decoder_target
from sae_binary_ext.saelens.splice import heads_side_by_side
from sae_binary_ext.training.least_squares import PULL, DecoderFit

# Most margins held in memory: 1 GB in float32.
MARGINS_AT_ONCE = 2**28
TOKENS_AT_ONCE = 4096
# Passes over all latents.
SWEEPS = 3
# A latent may come to fire on up to this many times its present tokens.
MORE_TOKENS, FEWEST_TOKENS = 4, 64


@dataclass(frozen=True)
class Fitted:
    """Thresholds in place of a selection, with the decoder of least error for the new codes.

    Attributes:
        kind: the kind of thresholds, in words.
        raised: float32 [latents], what to add to each threshold.
        weight, bias: the decoder, [latents, d_out] and [d_out].
    """

    kind: str
    raised: Tensor
    weight: Tensor
    bias: Tensor


@torch.no_grad()
def fit_thresholds(coder: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> Fitted:
    """Fit one threshold, and each latent's own; return those with the smaller error on new tokens.

    Args:
        coder: a binary coder of any selection.
        batches: inputs [tokens, d_in] and targets [tokens, d_out]. If there are more margins than
            MARGINS_AT_ONCE, the first tokens are used. The last fifth decides between the two.
    """
    margins, targets, counts = _margins(coder, batches)
    fitted = len(targets) * 4 // 5
    first = _Tokens(margins[:, :fitted], targets[:fitted])
    last = _Tokens(margins[:, fitted:], targets[fitted:])
    rates = counts / len(targets)
    one = _least_of_largest(first.margins, rates)
    found = [
        first.refitted("one threshold", one.expand(len(rates)), coder),
        first.refitted("each latent's own threshold", first.own_thresholds(rates, coder), coder),
    ]
    return min(found, key=last.squared_error)


def _margins(coder: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Margins [latents, tokens], what the decoder should give [tokens, d_out], and firings."""
    left = MARGINS_AT_ONCE // coder.cfg.d_sae
    counts = torch.zeros(coder.cfg.d_sae, device=coder.W_dec.device)
    margins: list[Tensor] = []
    targets: list[Tensor] = []
    with heads_side_by_side(coder):
        for x, target in batches:
            x, target = x[:left], target[:left]
            left -= len(x)
            codes, pre = coder.codes_and_pre_activations(x, noise=False)
            counts += codes.sum(0, dtype=torch.float32)
            margins.append((pre - coder.log_threshold.exp()).float().T)
            targets.append(decoder_target(coder, x, target).float())
    return torch.cat(margins, dim=1), torch.cat(targets), counts


def _least_of_largest(margins: Tensor, rates: Tensor) -> Tensor:
    """The margin of [latents, tokens] above which as many lie as the firing rates [latents] say."""
    firings = int((rates.sum() * margins.shape[1]).round())
    return margins.flatten().kthvalue(max(margins.numel() - firings, 1)).values


class _Tokens:
    """margins, float32 [latents, tokens], and what the decoder should give, [tokens, d_out]."""

    def __init__(self, margins: Tensor, targets: Tensor) -> None:
        self.margins, self.targets = margins, targets

    def own_thresholds(self, rates: Tensor, coder: Any) -> Tensor:
        """Thresholds [latents] of little squared error, at the L0 of the firing rates [latents].

        All thresholds start where they keep the firing rates. Each latent in turn then moves its
        threshold to where the error is least, if all other latents stay as they are. At the end,
        all thresholds move by the same amount, which restores L0.
        """
        tokens, weight = len(self.targets), coder.W_dec.float()
        counts = (rates * tokens).round().long().clamp(max=tokens)
        # A latent that never fires starts at its largest margin, which does not exceed itself.
        least = [
            own.topk(max(count, 1)).values[-1]
            for own, count in zip(self.margins, counts.tolist(), strict=True)
        ]
        thresholds = torch.stack(least)
        below = thresholds.nextafter(thresholds.new_tensor(-torch.inf))
        thresholds = torch.where(counts > 0, below, thresholds)
        residual = self.targets - self._output(thresholds, weight, coder.b_dec.float())
        for _ in tqdm(range(SWEEPS), "Fitting thresholds", leave=False):
            for latent, row in enumerate(weight):
                own, threshold = self.margins[latent], thresholds[latent]
                number = int((own > threshold).sum()) * MORE_TOKENS + FEWEST_TOKENS
                values, where = own.topk(min(number, tokens))
                fired = values > threshold
                # What firing on a token adds to the squared error, against not firing there.
                square = row.square().sum()
                costs = square - 2 * (residual[where] @ row + fired * square)
                least, last = costs.cumsum(0).min(0)
                edge = values[last : last + 2].mean() if least < 0 else values[0]
                change = (values > edge).float() - fired.float()
                thresholds[latent] = edge
                residual.index_add_(0, where, change[:, None] * row, alpha=-1)
        return thresholds + _least_of_largest(self.margins - thresholds[:, None], rates)

    def refitted(self, kind: str, thresholds: Tensor, coder: Any) -> Fitted:
        """The thresholds with the decoder of least error for their codes."""
        fit = DecoderFit(*coder.W_dec.shape, device=coder.W_dec.device)
        for part in torch.arange(len(self.targets)).split(TOKENS_AT_ONCE):
            fit.add((self.margins[:, part] > thresholds[:, None]).T, self.targets[part])
        subtracts = coder.cfg.apply_b_dec_to_input
        return Fitted(kind, thresholds, *fit.solve(coder.W_dec, coder.b_dec, PULL, not subtracts))

    def squared_error(self, fitted: Fitted) -> float:
        """Squared error, summed over tokens and dimensions."""
        output = self._output(fitted.raised, fitted.weight.float(), fitted.bias.float())
        return (output - self.targets).square().sum(dtype=torch.float64).item()

    def _output(self, thresholds: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parts = self.margins.split(TOKENS_AT_ONCE, 1)
        codes = ((part > thresholds[:, None]).T.float() for part in parts)
        return torch.cat([each @ weight + bias for each in codes])
