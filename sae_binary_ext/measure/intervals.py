"""Figures of a stream of text with intervals, without keeping the text.

The bootstrap resamples documents: tokens of one document resemble each other. It is the Poisson
bootstrap (each document counts a Poisson(1) number of times in each replicate), because then a sum
a replicate is all that needs to be kept, however many documents there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

REPLICATES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that resampled documents put it in.

    Attributes:
        value: of all documents.
        low, high: ends of the middle 95% of the replicates; NaN where there is but one document.
    """

    value: float
    low: float
    high: float


def document_weights(documents: list[int]) -> Tensor:
    """How often each row's document counts: once, and Poisson(1) times in each replicate.

    Args:
        documents: of each row, the number of its document.

    Returns:
        float64 [rows, 1 + REPLICATES]. A document always has the same numbers.
    """
    rows: list[Tensor] = []
    for document in documents:
        generator = torch.Generator().manual_seed(document)
        draws = torch.poisson(torch.ones(REPLICATES, dtype=torch.float64), generator)
        rows.append(torch.cat([draws.new_ones(1), draws]))
    return torch.stack(rows)


class WeightedSums(nn.Module):
    """Sums over rows, as they are and in every replicate; a module for its state_dict.

    Buffer: sums, float64 [1 + REPLICATES, width].
    """

    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(1 + REPLICATES, width, dtype=torch.float64))

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Count rows.

        Args:
            rows: [rows, width].
            weights: [rows, 1 + REPLICATES], their documents' weights.
        """
        self.sums += weights.T @ rows.to("cpu", torch.float64)

    def estimate(self, figure: Callable[[Tensor], Tensor]) -> Estimate:
        """A figure of the sums, with its interval.

        Args:
            figure: of [n, width], the n figures [n].
        """
        return estimate_of(figure(self.sums))


def resampled(number: int) -> Tensor:
    """Places of so many things, as they are and drawn with replacement in every replicate.

    Returns:
        int64 [1 + REPLICATES, number]; the same for the same number.
    """
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(number, (REPLICATES, number), generator=generator)
    return torch.cat([torch.arange(number)[None], again])


def estimate_of(figures: Tensor) -> Estimate:
    """The estimate that figures [1 + REPLICATES], all documents' first, amount to."""
    value, replicates = figures[0].item(), figures[1:]
    outside = (1 - CONFIDENCE) / 2
    # A replicate without any document has no figure.
    drawn = replicates[replicates.isfinite()]
    # One document's replicates differ by rounding alone.
    if not len(drawn) or drawn.isclose(drawn[0], rtol=1e-6, atol=0).all():
        return Estimate(value, float("nan"), float("nan"))
    ends = drawn.quantile(torch.tensor([outside, 1 - outside], dtype=drawn.dtype))
    return Estimate(value, *ends.tolist())
