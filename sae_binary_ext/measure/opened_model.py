"""A model with its coders and its text, and the batches that are read."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.documents import OutlyingTokens, TextBatch, cut_rows
from sae_binary_ext.measure.figures import TokenBatch
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, codes_of, read_hooks
from sae_binary_ext.saelens.splice import HookedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadBatch:
    """Rows of text, the positions that count (bool [rows, context]), and activations by hook."""

    text: TextBatch
    where: Tensor
    found: dict[str, Tensor]

    def activations(self, hooks: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inputs [tokens, d_in] and targets [tokens, d_out] at the positions that count."""
        return self.found[hooks[0]][self.where], self.found[hooks[1]][self.where]

    def tokens(self, hooks: tuple[str, str], weights: Tensor, with_rows: bool = True) -> TokenBatch:
        """The activations for RunningFigures; set with_rows if a coder reads sequences."""
        rows = self.found[hooks[0]] if with_rows else None
        return TokenBatch(*self.activations(hooks), self.text, self.where, weights, rows)

    def codes(self, coder: Any, hook: str) -> Tensor:
        """Codes [tokens, latents] of a coder that reads `hook`, at the positions that count."""
        return codes_of(coder, self.found[hook], self.where)


@dataclass(frozen=True)
class OpenedModel:
    """A model, the coders that belong to it, and the text to read."""

    candidates: list[Candidate]
    # The model's names of the input hook and the output hook of each site.
    hooks: dict[Site, tuple[str, str]]
    model: HookedModel
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    # Each call gives all texts again, from the first one.
    documents: Callable[[], Iterable[str]]
    # Finds tokens of too large a norm; its `left_out` is for the last reading.
    outliers: OutlyingTokens
    # Most tokens in a row. The model has at least this number of positions.
    context_size: int
    # Positions before this one do not count.
    first_position: int

    def rows(self) -> Iterator[TextBatch]:
        """The whole text in batches of rows."""
        return cut_rows(self.documents(), self.tokenizer, self.context_size, ROWS_PER_FORWARD)

    def batches(self, tokens: int) -> Iterator[tuple[TextBatch, int]]:
        """Batches of rows with their numbers of tokens that count, until these sum to `tokens`."""
        taken = 0
        for batch in self.rows():
            number = int(batch.positions(self.first_position).sum())
            yield batch, number
            taken += number
            if taken >= tokens:
                return
        logger.warning("The text ends after %d of %d tokens.", taken, tokens)

    def forward(self, tokens: Tensor, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        """Activations [rows, context, width] of tokens [rows, context] at all coders' hooks.

        `more_hooks` are names of further hooks. ValueError if a coder lacks the model's widths.
        """
        found = read_hooks(self.model, self.hook_names(more_hooks), tokens)
        self.check_widths(found)
        return found

    def hook_names(self, more_hooks: Iterable[str] = ()) -> set[str]:
        """The model's names of all coders' hooks, and `more_hooks`."""
        return {name for pair in self.hooks.values() for name in pair} | set(more_hooks)

    def check_widths(self, found: Mapping[str, Tensor]) -> None:
        """Raise ValueError if activations [rows, context, width] do not fit a coder."""
        for candidate in self.candidates:
            source, target = self.hooks[candidate.site]
            candidate.check_widths(found[source], found[target])

    def activations(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        """Activations of a batch of rows; result and more_hooks as in `forward`."""
        return self.forward(text.tokens, more_hooks)

    def read(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> ReadBatch:
        """The activations of a batch, and its positions that count; more_hooks as in `forward`."""
        found = self.activations(text, more_hooks)
        where = self.outliers.within(found, text.positions(self.first_position))
        return ReadBatch(text, where, found)
