"""Activations of two halves of a text: decoders are fitted on one and measured on the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import document_weights
from sae_binary_ext.measure.figures import CoderFigures, RunningFigures, RunningVariance, TokenBatch
from sae_binary_ext.measure.in_model import reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.settings import ReadingConfig


@dataclass(frozen=True)
class Halves:
    """Activations of a text in two halves, at one hook or at a pair of hooks.

    Attributes:
        fitted: inputs [tokens, d_in] and targets [tokens, d_out] of every other document.
        measured: activations of the documents in between.
    """

    fitted: list[tuple[Tensor, Tensor]]
    measured: list[TokenBatch]

    def mean_norm(self) -> float:
        """Mean norm of the measured inputs."""
        return torch.cat([batch.inputs.norm(dim=1) for batch in self.measured]).mean().item()

    def to_fit(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The fitted half on a device, in float32."""
        return ((x.to(device).float(), y.to(device).float()) for x, y in self.fitted)


def read_halves(
    opened: OpenedModel, config: ReadingConfig, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Halves]:
    """Read a text into memory. Its documents go to the two halves in turn.

    Args:
        opened: the model.
        config: how much text.
        pairs: for each reading, the model's hook names of inputs and targets.

    Raises:
        ValueError: there is only one document.
    """
    states = {pair: Halves([], []) for pair in pairs}
    keeps_rows = any(reads_sequences(each.coder) for each in opened.candidates)
    for batch in read_text(opened, config, more_hooks={name for pair in states for name in pair}):
        odd = torch.tensor(batch.text.documents)[:, None] % 2 == 1
        weights = document_weights(batch.text.documents)
        fitted = ReadBatch(batch.text, batch.where & ~odd, batch.found)
        measured = ReadBatch(batch.text, batch.where & odd, batch.found)
        for pair, own in states.items():
            if fitted.where.any():
                own.fitted.append(fitted.activations(pair))
            if measured.where.any():
                own.measured.append(measured.tokens(pair, weights, keeps_rows))
    for own in states.values():
        if not own.fitted or not own.measured:
            raise ValueError(
                "dataset: the text read is one document, and decoders are fitted to one document "
                "and measured on another. Give more tokens, or a text of several documents."
            )
    return states


def figures_on(coder: Any, batches: list[TokenBatch]) -> CoderFigures:
    """Figures of a coder on batches of one hook."""
    running = RunningFigures(coder)
    variance = RunningVariance(batches[0].targets.shape[1])
    for batch in batches:
        variance.add(batch)
        running.add(batch)
    return running.figures(variance)
