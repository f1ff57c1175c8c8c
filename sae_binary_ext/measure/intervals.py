"""Figures of a stream of text with intervals, in constant memory.

The bootstrap resamples documents, because tokens of one document resemble each other. It is the
Poisson bootstrap: each document counts a Poisson(1) number of times in each replicate. It needs one
sum for each replicate, for any number of documents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

REPLICATES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval.

    Attributes:
        value: the figure of all documents.
        low, high: ends of the middle 95% of the replicates; NaN if there is only one document.
    """

    value: float
    low: float
    high: float


def document_weights(documents: list[int]) -> Tensor:
    """How often each row counts: once, and then in each replicate as often as its document.

    Returns float64 [rows, 1 + REPLICATES]; the same for the same number of a document.
    """
    rows: list[Tensor] = []
    for document in documents:
        generator = torch.Generator().manual_seed(document)
        draws = torch.poisson(torch.ones(REPLICATES, dtype=torch.float64), generator)
        rows.append(torch.cat([draws.new_ones(1), draws]))
    return torch.stack(rows)


class WeightedSums(nn.Module):
    """Sums over rows, for all documents and for each replicate; a module for its state_dict.

    Buffer: sums, float64 [1 + REPLICATES, width].
    """

    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(1 + REPLICATES, width, dtype=torch.float64))

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Count rows [rows, width] with weights [rows, 1 + REPLICATES] of document_weights."""
        self.sums += weights.T @ rows.to("cpu", torch.float64)


def resampled(number: int) -> Tensor:
    """int64 [1 + REPLICATES, number]: indices in order, then drawn with replacement.

    The draw is the same for the same number.
    """
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(number, (REPLICATES, number), generator=generator)
    return torch.cat([torch.arange(number)[None], again])


def estimate_of(figures: Tensor) -> Estimate:
    """The estimate from figures [1 + REPLICATES], of which the first is of all documents."""
    value, replicates = figures[0].item(), figures[1:]
    outside = (1 - CONFIDENCE) / 2
    # A replicate without documents has no figure.
    drawn = replicates[replicates.isfinite()]
    # Replicates of a single document differ only by rounding.
    if not len(drawn) or drawn.isclose(drawn[0], rtol=1e-6, atol=0).all():
        return Estimate(value, float("nan"), float("nan"))
    ends = drawn.quantile(torch.tensor([outside, 1 - outside], dtype=drawn.dtype))
    return Estimate(value, *ends.tolist())
