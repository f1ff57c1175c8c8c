"""Text read once a stage, batch by batch, from where an interruption left it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.documents import TextBatch, cut_rows
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.progress import SavedProgress, interrupts_noted

logger = logging.getLogger(__name__)


class Rows(Protocol):
    """How text is cut.

    Attributes:
        context_size: tokens a row at most.
        first_position: positions before it do not count.
    """

    @property
    def context_size(self) -> int: ...

    @property
    def first_position(self) -> int: ...


@dataclass(frozen=True)
class RowCut:
    """Rows by their two numbers alone."""

    context_size: int
    first_position: int


class TextStream:
    """Documents as batches of rows, those that were used before passed over.

    Args:
        documents: gives the texts, from the first on each time it is called.
        tokenizer: the model's.
        rows: how to cut them.
        saved: what was used before.
    """

    def __init__(
        self,
        documents: Callable[[], Iterable[str]],
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        saved: SavedProgress,
    ) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self._rows, self._saved = rows, saved

    def go_on(
        self, stage: str, description: str, tokens: int, use: Callable[[TextBatch], None]
    ) -> None:
        """Use the batches of a stage that were not used before.

        Args:
            stage: its name in what is saved.
            description: for the progress bar.
            tokens: how many to read, at least; the last batch is finished.
            use: counts one batch.

        Raises:
            KeyboardInterrupt: Ctrl-C, once the batch is counted and all is saved.
            ValueError: there is no text.
        """
        done = self._saved.done(stage)
        batches = batches_of(self._documents(), self._tokenizer, self._rows, tokens)
        with (
            tqdm(total=tokens, desc=description, unit="tokens", unit_scale=True) as progress,
            interrupts_noted() as interrupted,
        ):
            for number, (batch, size) in enumerate(batches):
                if number >= done:
                    use(batch)
                    self._saved.advance(stage)
                progress.update(size)
                if interrupted():
                    self._saved.save()
                    raise KeyboardInterrupt
        if not self._saved.done(stage):
            raise ValueError("dataset: holds no text to measure on.")
        self._saved.save()


def batches_of(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, rows: Rows, tokens: int
) -> Iterator[tuple[TextBatch, int]]:
    """Batches until there are so many tokens in all, each with its number of them.

    Args:
        documents: texts.
        tokenizer: the model's.
        rows: how to cut them.
        tokens: how many, at least; the last batch is finished. Where the text ends before, that is
            logged.
    """
    taken = 0
    for batch in cut_rows(documents, tokenizer, rows.context_size, ROWS_PER_FORWARD):
        number = int(batch.positions(rows.first_position).sum())
        yield batch, number
        taken += number
        if taken >= tokens:
            return
    logger.warning("The text ends after %d of %d tokens.", taken, tokens)
