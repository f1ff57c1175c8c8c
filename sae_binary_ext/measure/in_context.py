"""Prompts that teach a task by examples, and where in them an answer is due."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD

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
