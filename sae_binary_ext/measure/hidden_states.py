"""Reads hidden states of a model by layer, by position in the text, or in prompts with examples."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.documents import TextBatch, padded
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, positions_of
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.settings import ReadingConfig

TASKS: dict[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
    "twice": lambda word: f"{word} {word}",
}
SHORTEST_WORD, LONGEST_WORD = 4, 9
QUESTION, ANSWER = "{} ->", " {}\n"
# Number of words used, the most frequent ones of the text.
WORDS = 2000
POSITIONS = (1, 2, 4, 8, 16, 32, 63)
# Number of examples before the last question, and numbers of examples after which to read states.
EXAMPLES = 15
LAST_EXAMPLES = (0, 1, 2, 4, 8, 15)
FEWEST_ROWS = 10
# A key is a layer, and one of: a position, a number of examples, "all".
States = dict[tuple[int, int | str], Tensor]


def frequent_words(documents: Iterable[str]) -> list[str]:
    """The most frequent words of lower-case letters alone, in falling order of frequency."""
    pattern = re.compile(rf"\b[a-z]{{{SHORTEST_WORD},{LONGEST_WORD}}}\b")
    counts = Counter(word for text in documents for word in pattern.findall(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]


def in_context_prompts(
    words: list[str], tokenizer: PreTrainedTokenizerBase, prompts: int, examples: int, seed: int
) -> Iterator[tuple[TextBatch, Tensor]]:
    """Make prompts of lines "word -> answer". Each prompt has one task; tasks take turns.

    A prompt has `examples` lines with an answer, and a last line without one. No word occurs twice
    in a prompt; words are drawn with `seed`. Yields batches, and int64 [rows, examples + 1], the
    position of the last token before each line's answer.
    """
    draw = random.Random(seed)
    bos = cast(int | None, tokenizer.bos_token_id)

    def ids(text: str) -> list[int]:
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])

    def one(number: int) -> tuple[list[int], list[int]]:
        task = list(TASKS.values())[number % len(TASKS)]
        row, due = [] if bos is None else [bos], []
        for word in draw.sample(words, examples + 1):
            # Question and answer are tokenized separately, so that the end of the question is
            # known.
            row += ids(QUESTION.format(word))
            due.append(len(row) - 1)
            row += ids(ANSWER.format(task(word)))
        return row, due

    numbers = iter(range(prompts))
    while batch := list(islice(numbers, ROWS_PER_FORWARD)):
        rows, due = zip(*map(one, batch), strict=True)
        yield padded(list(rows), batch, max(map(len, rows))), torch.tensor(due)


def states_of_layers(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int
) -> States:
    """States at each layer from all positions: at most `most`, drawn evenly from the text.

    `hooks` has the model's name of the hook to read for each layer. Returns float16
    [states, width] for each (layer, "all").
    """
    drawn = {layer: EvenlyDrawn(most) for layer in hooks}
    for batch in read_text(opened, config, more_hooks=hooks.values()):
        for layer, hook in hooks.items():
            drawn[layer].add(batch.found[hook][batch.where])
    return {(layer, "all"): states.drawn() for layer, states in drawn.items()}


class EvenlyDrawn:
    """States drawn evenly from a stream of unknown length.

    Every `step`-th state is kept. Once it has 2 * `most` states, it drops every second one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[Tensor] = []
        self._number_kept, self._seen, self._step = 0, 0, 1

    def add(self, states: Tensor) -> None:
        """Take the next states [states, width] of the stream."""
        # A copy, because a view of float16 states would keep the whole batch in memory.
        kept = states[-self._seen % self._step :: self._step].to(torch.float16, copy=True)
        self._seen += len(states)
        self._kept.append(kept)
        self._number_kept += len(kept)
        while self._number_kept >= 2 * self.most:
            self._kept = [torch.cat(self._kept)[::2]]
            self._number_kept, self._step = len(self._kept[0]), 2 * self._step

    def drawn(self) -> Tensor:
        """float16 [states, width]: `most` states, or all if the stream had fewer."""
        kept = torch.cat(self._kept)
        if len(kept) <= self.most:
            return kept
        return kept[torch.linspace(0, len(kept) - 1, self.most).long()]


def states_of_positions(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int
) -> States:
    """States at each (layer, position), from the rows long enough for the last position.

    Arguments are those of states_of_layers. Raises ValueError if there are too few long rows.
    """
    positions = [at for at in POSITIONS if config.first_position <= at < opened.context_size]
    places = torch.tensor(positions)
    batches = read_text(opened, config, more_hooks=hooks.values())
    rows = ((batch, places.expand(len(batch.where), -1)) for batch in batches)
    return _states_at(rows, positions, hooks, most)


def states_of_prompts(
    opened: OpenedModel, config: ReadingConfig, hooks: dict[int, str], most: int, seed: int
) -> States:
    """States before the answer, at each (layer, number of examples); see in_context_prompts.

    Other arguments are those of states_of_layers. The number of prompts is config.tokens over the
    context size. Raises ValueError if the text has too few words, or the model too few positions
    for a prompt.
    """
    words = frequent_words(opened.documents())
    if len(words) <= EXAMPLES:
        raise ValueError(
            f"dataset={config.dataset!r}: has {len(words)} different words of {SHORTEST_WORD} to "
            f"{LONGEST_WORD} lower-case letters, and a prompt takes {EXAMPLES + 1}. Give a longer "
            "text."
        )
    positions = positions_of(opened.model)
    prompts = max(config.tokens // opened.context_size, 1)

    def rows() -> Iterator[tuple[ReadBatch, Tensor]]:
        made = in_context_prompts(words, opened.tokenizer, prompts, EXAMPLES, seed)
        opened.outliers.start()
        with tqdm(total=prompts, desc="Reading", unit="prompts") as progress:
            for text, due in made:
                text = _within(text, int(due.max()), positions)
                yield opened.read(text, hooks.values()), due[:, LAST_EXAMPLES]
                progress.update(len(due))

    return _states_at(rows(), list(LAST_EXAMPLES), hooks, most)


def _within(text: TextBatch, last: int, positions: int | None) -> TextBatch:
    """Cut prompts to the model's positions; raise ValueError if that cuts off a question."""
    if positions is None or text.tokens.shape[1] <= positions:
        return text
    if last >= positions:
        raise ValueError(
            f"prompts='in_context': a prompt has its last question at position {last}, and the "
            f"model has {positions} positions. Give a model with more positions."
        )
    lengths = text.lengths.clamp(max=positions)
    return replace(text, tokens=text.tokens[:, :positions], lengths=lengths)


def _states_at(
    rows: Iterable[tuple[ReadBatch, Tensor]], points: list[int], hooks: dict[int, str], most: int
) -> States:
    """At most `most` states for each point, from rows in which all places count.

    `rows` has batches with their places, int64 [rows, points]: the position of each point in a row.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in hooks}
    for batch, places in rows:
        kept = batch.where.gather(1, places).all(1)
        for layer, hook in hooks.items():
            found[layer].append(batch.found[hook][kept.nonzero(), places[kept]].half())
    states: States = {}
    for layer, parts in found.items():
        of_layer = torch.cat(parts)[:most]
        if len(of_layer) < FEWEST_ROWS:
            raise ValueError(
                f"tokens: {len(of_layer)} rows of the text reach {points[-1]}, and a coder needs "
                f"{FEWEST_ROWS} rows to learn from. Give a longer text."
            )
        states |= {(layer, at): of_layer[:, place] for place, at in enumerate(points)}
    return states
