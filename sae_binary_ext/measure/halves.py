"""Activations of two halves of a text: one to fit to, the other to measure on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import document_weights
from sae_binary_ext.measure.figures import (
    CoderFigures,
    RunningFigures,
    RunningVariance,
    TokenBatch,
)
from sae_binary_ext.measure.in_model import reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, read_text
from sae_binary_ext.settings import ReadingConfig


@dataclass(frozen=True)
class Halves:
    """Activations at a hook, or at two.

    Attributes:
        fitted: inputs and targets, [tokens, d_in] and [tokens, d_out], of every other document.
        measured: those of the documents in between.
    """

    fitted: list[tuple[Tensor, Tensor]]
    measured: list[TokenBatch]

    def mean_norm(self) -> float:
        """Mean norm of an input."""
        norms = torch.cat([batch.inputs.norm(dim=1) for batch in self.measured])
        return norms.mean().item()

    def to_fit(self, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
        """The fitted half on a device, in float32."""
        return ((x.to(device).float(), y.to(device).float()) for x, y in self.fitted)


def read_halves(
    opened: OpenedModel, config: ReadingConfig, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Halves]:
    """Activations of documents in turn to fit to and to measure on, all in memory.

    Args:
        opened: the model.
        config: which text.
        pairs: of each reading, the model's names of the inputs and of the targets.

    Raises:
        ValueError: there is but one document.
    """
    states = {pair: Halves([], []) for pair in pairs}
    keeps_rows = any(reads_sequences(each.coder) for each in opened.candidates)
    names = {name for pair in states for name in pair}
    for batch in read_text(opened, config, more_hooks=names):
        to_measure = torch.tensor(batch.text.documents) % 2 == 1
        weights = document_weights(batch.text.documents)
        fitted = batch.where & ~to_measure[:, None]
        measured = batch.where & to_measure[:, None]
        for (source, target), own in states.items():
            inputs, targets = batch.found[source], batch.found[target]
            if fitted.any():
                own.fitted.append((inputs[fitted], targets[fitted]))
            if measured.any():
                own.measured.append(
                    TokenBatch(
                        inputs[measured],
                        targets[measured],
                        batch.text,
                        measured,
                        weights,
                        inputs if keeps_rows else None,
                    )
                )
    for own in states.values():
        if not own.fitted or not own.measured:
            raise ValueError(
                "dataset: the text read is of one document; decoders are fitted to one and "
                "measured on another. Give more tokens, or a text of several documents."
            )
    return states


def figures_on(coder: Any, batches: list[TokenBatch]) -> CoderFigures:
    """A coder's figures on batches of one hook."""
    running = RunningFigures(coder)
    variance = RunningVariance(batches[0].targets.shape[1])
    for batch in batches:
        variance.add(batch)
        running.add(batch)
    return running.figures(variance)
