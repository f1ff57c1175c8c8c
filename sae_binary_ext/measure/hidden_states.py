"""Hidden states of a model: of its layers, of positions of a text, and in prompts."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, read_hooks
from sae_binary_ext.measure.reading import OpenedModel, read_text
from sae_binary_ext.saelens.hooked_model import positions_of
from sae_binary_ext.settings import ReadingConfig

TASKS: dict[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
    "twice": lambda word: f"{word} {word}",
}
SHORTEST_WORD, LONGEST_WORD = 4, 9
QUESTION, ANSWER = "{} ->", " {}\n"
# Of the text, words used: the frequent ones.
WORDS = 2000


def frequent_words(documents: Iterable[str]) -> list[str]:
    """The most frequent words of lower-case letters, most frequent first."""
    counts: dict[str, int] = {}
    pattern = re.compile(rf"\b[a-z]{{{SHORTEST_WORD},{LONGEST_WORD}}}\b")
    for text in documents:
        for word in pattern.findall(text):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]


def in_context_prompts(
    words: list[str],
    tokenizer: PreTrainedTokenizerBase,
    prompts: int,
    examples: int,
    seed: int,
) -> Iterator[tuple[TextBatch, torch.Tensor]]:
    """Prompts of one task each, the tasks in turn: "word -> answer", line by line.

    Args:
        words: to draw from; no word twice in a prompt.
        tokenizer: the model's.
        prompts: how many.
        examples: lines with an answer before the last question.
        seed: of the words.

    Yields:
        Rows, and int64 [rows, examples + 1], the position of the token after which the answer of
        each line is due.
    """
    draw = random.Random(seed)

    def ids(text: str) -> list[int]:
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])

    def one(number: int) -> tuple[list[int], list[int]]:
        task = list(TASKS.values())[number % len(TASKS)]
        bos = cast(int | None, tokenizer.bos_token_id)
        row, due = [] if bos is None else [bos], []
        for word in draw.sample(words, examples + 1):
            # Question and answer are tokens of their own: where one ends is then known.
            row += ids(QUESTION.format(word))
            due.append(len(row) - 1)
            row += ids(ANSWER.format(task(word)))
        return row, due

    made = map(one, range(prompts))
    first = 0
    while batch := list(islice(made, ROWS_PER_FORWARD)):
        lengths = torch.tensor([len(row) for row, _ in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for place, (row, _) in enumerate(batch):
            tokens[place, : len(row)] = torch.tensor(row)
        documents = list(range(first, first + len(batch)))
        first += len(batch)
        yield TextBatch(tokens, lengths, documents), torch.tensor([due for _, due in batch])


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
                found = read_hooks(opened.model, hooks.values(), text.tokens)
                where = opened.outliers.within(found, text.positions(config.first_position))
                places = due[:, LAST_EXAMPLES]
                kept = where.gather(1, places).all(1)
                yield {hook: states[kept] for hook, states in found.items()}, places[kept]
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
