"""Tasks of sae-probes, and a model's state at the last token of each of their texts.

Texts, labels and splits are those of sae-probes' normal setting. Its own reader would run the model
once for each task and hook, on rows padded to the longest text. Here one pass reads all hooks, on
rows of about equal length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.probe.config import ProbeConfig
from sae_binary_ext.measure.candidates import settings_of_model, told
from sae_binary_ext.measure.documents import TextBatch, padded
from sae_binary_ext.measure.reading import OpenedModel

try:
    from sae_probes import utils_data
except ModuleNotFoundError as error:
    raise ImportError(
        "needs the package sae-probes, which has the tasks: pip install 'sae_binary_ext[probe]'."
    ) from error

# Seed of sae-probes' splits and probes, its default.
SEED = 42
# sae-probes' sizes: most examples of a task, most to train on, and fewest left to test on.
MOST_EXAMPLES, MOST_TRAINING, FEWEST_TESTS = 5000, 1024, 100
# Tokens in a forward pass, padding included.
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Task:
    """A binary classification of texts. Its first `training` texts are for training a probe.

    labels: int64 [texts], 0 or 1.
    """

    name: str
    texts: list[str]
    labels: Tensor
    training: int


@dataclass(frozen=True)
class Reading:
    """All that a task's states depend on, besides the model's name."""

    context_size: int
    test_examples: int
    model_settings: str
    bfloat16: bool


def reading_of(opened: OpenedModel, config: ProbeConfig) -> Reading:
    """How the model of opened coders reads tasks."""
    settings = told(settings_of_model(opened.candidates[0]))
    return Reading(opened.context_size, config.test_examples, settings, opened.bfloat16)


def task_names(config: ProbeConfig) -> list[str]:
    """The tasks that the settings choose; ValueError if sae-probes has no task of a name."""
    known = utils_data.get_numbered_binary_tags()
    if missing := sorted(set(config.names) - set(known)):
        raise ValueError(
            f"names={missing}: sae-probes has no such task. Its tasks are {', '.join(known)}."
        )
    number = min(config.tasks, len(known))
    spaced = [known[place * len(known) // number] for place in range(number)]
    return list(dict.fromkeys(config.names)) or spaced


def load_task(name: str, test_examples: int) -> Task:
    """Load a task with sae-probes' split; at most test_examples of its test examples are kept."""
    prompts = utils_data.read_numbered_dataset_df(name)["prompt"].tolist()[:MOST_EXAMPLES]
    labels = utils_data.get_yvals(name)[:MOST_EXAMPLES]
    training = min(len(prompts) - FEWEST_TESTS, MOST_TRAINING)
    split = utils_data.get_train_test_indices(
        labels, training, len(prompts) - training - 1, seed=SEED
    )
    rows = [*split[0].tolist(), *split[1].tolist()[:test_examples]]
    return Task(name, [prompts[row] for row in rows], torch.tensor(labels)[rows], training)


def states_saved(
    path: Path, of: str, hooks: set[str], read: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """States from a file that has the fingerprint `of` and all hooks; otherwise read and save."""
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {}).get("of") == of
            if known and hooks <= set(file.keys()):
                return load_file(path)
    states = read()
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(states, unfinished, metadata={"of": of})
    unfinished.replace(path)
    return states


def last_states(opened: OpenedModel, task: Task, hooks: set[str]) -> dict[str, Tensor]:
    """States at the last token of each text: float32 [texts, width] for each hook of the model."""
    states = {hook: list[Tensor]() for hook in hooks}
    order: list[int] = []
    rows = _tokenized(opened, task.texts)
    number = sum(map(len, rows))
    with tqdm(total=number, desc=task.name, unit="tokens", unit_scale=True) as progress:
        for batch in _batches(rows):
            found = opened.forward(batch.tokens)
            ends = torch.arange(len(batch.lengths)), batch.lengths - 1
            for hook in hooks:
                states[hook].append(found[hook][ends].float().cpu())
            order += batch.documents
            progress.update(int(batch.lengths.sum()))
    back = torch.tensor(order).argsort()
    return {hook: torch.cat(parts)[back] for hook, parts in states.items()}


def _tokenized(opened: OpenedModel, texts: list[str]) -> list[list[int]]:
    """Token ids of each text. A long text keeps its last tokens, as in sae-probes."""
    opened.tokenizer.truncation_side = "left"
    encoded = opened.tokenizer(texts, truncation=True, max_length=opened.context_size)
    return [list[int](row) for row in encoded["input_ids"]]


def _batches(rows: list[list[int]]) -> Iterator[TextBatch]:
    """Batches of rows of about equal length, long ones first; `documents` are numbers of texts."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while order:
        longest = len(rows[order[0]])
        size = max(TOKENS_AT_ONCE // longest, 1)
        numbers, order = order[:size], order[size:]
        yield padded([rows[number] for number in numbers], numbers, longest)
