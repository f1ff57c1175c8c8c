"""Hidden states of a model: of its layers, of positions of a text, and in prompts."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.in_context import frequent_words, in_context_prompts
from sae_binary_ext.measure.reading import OpenedModel, read_text
from sae_binary_ext.saelens.hooked_model import positions_of
from sae_binary_ext.settings import ReadingConfig

POSITIONS = (1, 2, 4, 8, 16, 32, 63)
# Lines before the last question, and those of them after which states are taken.
EXAMPLES = 15
LAST_EXAMPLES = (0, 1, 2, 4, 8, 15)
FEWEST_ROWS = 10
# By layer, and position, number of examples, or "all".
States = dict[tuple[int, int | str], Tensor]


def states_of_layers(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int
) -> States:
    """Of each layer states of all positions, evenly drawn from the text.

    Args:
        opened: the model.
        config: which text.
        hooks: of each layer, the model's name of what is read.
        most: states a layer.

    Returns:
        float16 [states, width] of each layer, "all".
    """
    drawn = {layer: EvenlyDrawn(most) for layer in hooks}
    for batch in read_text(opened, config, more_hooks=hooks.values()):
        for layer, hook in hooks.items():
            drawn[layer].add(batch.found[hook][batch.where])
    return {(layer, "all"): states.drawn() for layer, states in drawn.items()}


class EvenlyDrawn:
    """States drawn evenly from a stream that ends nobody knows where.

    Every `step`-th is kept; when that are twice as many as wanted, every second of them goes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[Tensor] = []
        self._number_kept, self._seen, self._step = 0, 0, 1

    def add(self, states: Tensor) -> None:
        """The next states [states, width] of the stream."""
        # A copy: a view of float16 states would keep the whole batch.
        kept = states[-self._seen % self._step :: self._step].to(torch.float16, copy=True)
        self._seen += len(states)
        self._kept.append(kept)
        self._number_kept += len(kept)
        while self._number_kept >= 2 * self.most:
            self._kept = [torch.cat(self._kept)[::2]]
            self._number_kept, self._step = len(self._kept[0]), 2 * self._step

    def drawn(self) -> Tensor:
        """float16 [states, width], all of them where the stream had no more than `most`."""
        kept = torch.cat(self._kept)
        if len(kept) <= self.most:
            return kept
        return kept[torch.linspace(0, len(kept) - 1, self.most).long()]


def states_of_positions(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int
) -> States:
    """Of each layer and position states of the same rows, those that reach the last position.

    Args, Returns: as states_of_layers, each state with its position.

    Raises:
        ValueError: there are too few rows.
    """
    positions = [at for at in POSITIONS if config.first_position <= at < opened.context_size]
    positions_of = torch.tensor(positions)

    def rows() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in read_text(opened, config, more_hooks=hooks.values()):
            long = batch.where[:, positions].all(1)
            found = {hook: batch.found[hook][long] for hook in hooks.values()}
            yield found, positions_of.expand(int(long.sum()), -1)

    return _states_at(rows(), positions, hooks, most)


def states_of_prompts(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int, seed: int
) -> States:
    """Of each layer and number of examples states before the answer.

    Args, Returns: as states_of_layers, each state with the number of examples before it; words
    are drawn from the text by the seed, and there is a prompt for each row of so many tokens.

    Raises:
        ValueError: the text has too few words, or the model too few positions for a prompt.
    """
    words = frequent_words(opened.documents())
    if len(words) <= EXAMPLES:
        raise ValueError(
            f"dataset={config.dataset!r}: has {len(words)} words of lower-case letters, and a "
            f"prompt takes {EXAMPLES + 1}. Give a longer text."
        )
    positions = positions_of(opened.model)
    prompts = max(config.tokens // opened.context_size, 1)

    def rows() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        made = in_context_prompts(words, opened.tokenizer, prompts, EXAMPLES, seed)
        opened.outliers.start()
        with tqdm(total=prompts, desc="Reading", unit="prompts") as progress:
            for text, due in made:
                text = _within(text, int(due.max()), positions)
                batch = opened.read(text, hooks.values())
                places = due[:, LAST_EXAMPLES]
                kept = batch.where.gather(1, places).all(1)
                yield {hook: states[kept] for hook, states in batch.found.items()}, places[kept]
                progress.update(len(due))

    return _states_at(rows(), list(LAST_EXAMPLES), hooks, most)


def _within(text: TextBatch, last: int, positions: int | None) -> TextBatch:
    """Prompts no longer than the model has positions; the last answer alone may be cut off.

    Raises:
        ValueError: the last position of interest is beyond them.
    """
    if positions is None or text.tokens.shape[1] <= positions:
        return text
    if last >= positions:
        raise ValueError(
            f"prompts='in_context': a prompt has its last question at position {last}, and the "
            f"model has {positions} positions. Give a model with more of them."
        )
    return replace(
        text, tokens=text.tokens[:, :positions], lengths=text.lengths.clamp(max=positions)
    )


def _states_at(
    rows: Iterator[tuple[dict[str, Tensor], Tensor]],
    points: list[int],
    hooks: dict[int, str],
    most: int,
) -> States:
    """States at some positions of each row.

    Args:
        rows: activations of each hook, [rows, context, width], and positions, int64 [rows, points].
        points: what each column of positions is called.
        hooks: of each layer.
        most: states a point.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in hooks}
    for activations, positions in rows:
        row = torch.arange(len(positions))[:, None]
        for layer, hook in hooks.items():
            found[layer].append(activations[hook][row, positions].half())
    states: States = {}
    for layer, parts in found.items():
        of_layer = torch.cat(parts)[:most]
        if len(of_layer) < FEWEST_ROWS:
            raise ValueError(
                f"tokens: the text has {len(of_layer)} rows that reach {points[-1]}, and a coder "
                f"needs {FEWEST_ROWS} to learn from. Give a longer text."
            )
        states |= {(layer, at): of_layer[:, place] for place, at in enumerate(points)}
    return states
