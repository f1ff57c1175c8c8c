"""Prompts teach a task by examples."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_binary_ext.measure.hidden_states import TASKS, frequent_words, in_context_prompts

WORDS = [f"{first}{second}word" for first in "abcd" for second in "efgh"]


def characters() -> PreTrainedTokenizerFast:
    """A tokenizer in which each character is a token."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ->\n"
    vocabulary = {"<s>": 0} | {letter: place + 1 for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def prompts(number: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Each prompt, and for each answer the text of the prompt before it."""
    tokenizer = characters()
    found: list[tuple[str, list[str]]] = []
    for text, due in in_context_prompts(WORDS, tokenizer, number, 3, seed):
        for row, length, ends in zip(text.tokens, text.lengths, due, strict=True):
            symbols = tokenizer.convert_ids_to_tokens(row[:length].tolist())
            assert symbols[0] == "<s>"
            found.append(
                ("".join(symbols[1:]), ["".join(symbols[1 : end + 1]) for end in ends.tolist()])
            )
    return found


def test_answers_are_due_after_the_arrows_and_right():
    made = prompts(13)
    assert len(made) == 13
    tasks = list(TASKS.values())
    for number, (prompt, before) in enumerate(made):
        lines = prompt.splitlines()
        assert len(lines) == len(before) == 4
        for place, (line, start) in enumerate(zip(lines, before, strict=True)):
            word, answer = line.split(" -> ")
            assert word in WORDS
            assert answer == tasks[number % len(tasks)](word)
            assert start == "".join(f"{each}\n" for each in lines[:place]) + f"{word} ->"


def test_no_word_comes_twice_in_a_prompt_and_seeds_differ():
    for prompt, _ in prompts(8):
        words = [line.split(" -> ")[0] for line in prompt.splitlines()]
        assert len(set(words)) == 4
    assert prompts(8) == prompts(8) != prompts(8, seed=1)


def test_words_are_frequent_ones_of_lower_case_letters():
    texts = ["word word other Word word1 of interpretability", "other word naïve tail-end"]
    assert frequent_words(texts) == ["word", "other", "tail"]


def test_documents_are_numbered_through():
    batches = [text for text, _ in in_context_prompts(WORDS, characters(), 20, 1, 0)]
    assert torch.tensor([n for text in batches for n in text.documents]).tolist() == list(range(20))
