"""What a model loses with coders' outputs in its activations' places, from a stream of text."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.intervals import Estimate, WeightedSums, estimate_of
from sae_binary_ext.saelens.splice import Splice

# Positions whose logits are compared at once: 100 MB of a vocabulary of 49,152.
POSITIONS_AT_ONCE = 512
PREDICTIONS, CLEAN, ZEROED, MEANED, SPLICED, POSITIONS, DIVERGENCE = range(7)
Replacement = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SplicedFigures:
    """Losses in nats a prediction, of those made at positions that are replaced.

    Attributes:
        predictions: of tokens of the text; one a row fewer than positions.
        clean: cross-entropy of the untouched model.
        zero_ablated, mean_ablated: with zeros and with the mean activation in the place.
        spliced: with the coder's output.
        divergence: KL divergence of the spliced model's predictions from the clean one's, at all
            positions.
        recovered_of_zero, recovered_of_mean: share of the loss between ablation and the clean model
            that splicing keeps.
    """

    predictions: int
    clean: Estimate
    zero_ablated: Estimate
    mean_ablated: Estimate
    spliced: Estimate
    divergence: Estimate
    recovered_of_zero: Estimate
    recovered_of_mean: Estimate


class RunningLosses(nn.Module):
    """Sums from which the SplicedFigures of one coder come; a module for its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = WeightedSums(7)

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Count rows [rows, 7], from SplicedBatch.losses."""
        self.sums.add(rows, weights)

    def figures(self) -> SplicedFigures:
        """The figures so far."""
        means = self.sums.sums / self.sums.sums[:, :1]
        gaps = means[:, [ZEROED, MEANED]] - means[:, [CLEAN]]
        recovered = (means[:, [ZEROED, MEANED]] - means[:, [SPLICED]]) / gaps
        return SplicedFigures(
            predictions=int(self.sums.sums[0, PREDICTIONS]),
            clean=estimate_of(means[:, CLEAN]),
            zero_ablated=estimate_of(means[:, ZEROED]),
            mean_ablated=estimate_of(means[:, MEANED]),
            spliced=estimate_of(means[:, SPLICED]),
            divergence=estimate_of(self.sums.sums[:, DIVERGENCE] / self.sums.sums[:, POSITIONS]),
            recovered_of_zero=estimate_of(recovered[:, 0]),
            recovered_of_mean=estimate_of(recovered[:, 1]),
        )


class SplicedBatch:
    """A batch of text, run through a model with the activation of one site replaced.

    Args:
        splice: of the site.
        text: the rows.
        clean: logits and losses of the untouched model, as Splice.outputs gives them.
        first_position: positions before it stay as they are.
        mean: [width], the mean activation at the site's output.
    """

    def __init__(
        self,
        splice: Splice,
        text: TextBatch,
        clean: tuple[Tensor, Tensor],
        first_position: int,
        mean: Tensor,
    ) -> None:
        self._splice, self._tokens = splice, text.tokens
        self._where = text.positions(first_position)
        # The others' predictions no coder has a part in.
        self._predicts = self._where[:, :-1] & text.positions(0)[:, 1:]
        self._clean_logits, clean_losses = clean
        _, zeroed = self._outputs(lambda _, target: torch.zeros_like(target))
        _, meaned = self._outputs(lambda _, target: mean.to(target).expand_as(target))
        self._shared = [
            _row_sums(losses, self._predicts)
            for losses in (torch.ones_like(clean_losses), clean_losses, zeroed, meaned)
        ]

    def losses(self, replacement: Replacement) -> Tensor:
        """float64 [rows, 7]: sums over each row's predictions, for RunningLosses.

        Args:
            replacement: as Splice.replaced takes it.
        """
        logits, spliced = self._outputs(replacement)
        divergence = _row_sums(_divergences(self._clean_logits, logits), self._where)
        own = [_row_sums(spliced, self._predicts), self._where.sum(1).double(), divergence]
        return torch.stack([*self._shared, *own], dim=1)

    def _outputs(self, replacement: Replacement) -> tuple[Tensor, Tensor]:
        return self._splice.outputs(self._tokens, self._where, replacement)


def _row_sums(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values.to("cpu", torch.float64), 0.0).sum(1)


def _divergences(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) at each position, [rows, context], of logits [rows, context, _]."""
    found: list[Tensor] = []
    pairs = (logits.flatten(0, 1).split(POSITIONS_AT_ONCE) for logits in (clean, other))
    for one, two in zip(*pairs, strict=True):
        one, two = (logits.float().log_softmax(-1) for logits in (one, two))
        found.append((one.exp() * (one - two)).sum(-1))
    return torch.cat(found).view(clean.shape[:2])
