"""`sae-binary probe`: probes hidden states and codes on tasks of sae-probes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.probe import probe_fits as fits
from sae_binary_ext.commands.probe.config import ProbeConfig
from sae_binary_ext.commands.probe.probe_fits import Probe, ProbeScore
from sae_binary_ext.commands.probe.probe_page import Probed, probe_page
from sae_binary_ext.commands.probe.probe_tasks import (
    Reading,
    Task,
    last_states,
    load_task,
    reading_of,
    states_saved,
    task_names,
)
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.in_model import codes_of, reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, RunningCoders, fingerprint, read_text
from sae_binary_ext.measure.saved_records import SavedRecords
from sae_binary_ext.report.analysis import Analysis, analyse_coders


@dataclass(frozen=True)
class _ToProbe:
    """A coder, its fingerprint, and what probes read of its codes."""

    candidate: Candidate
    of: str
    forms: tuple[str, ...]
    figures: CoderFigures


def run_probe(coders: list[str], config: ProbeConfig) -> Analysis:
    """Probe coders and the states they read; arguments and errors as for analyse_coders.

    Also ValueError if a task does not exist or a coder reads sequences, and ImportError if
    sae-probes is not installed.
    """
    return analyse_coders(coders, config, _measure, probe_page)


def _measure(opened: OpenedModel, config: ProbeConfig) -> list[Probed]:
    names, coders = task_names(config), _coders(opened, config)
    reading, hooks = reading_of(opened, config), set(_hooks(opened))
    of = fingerprint([], reading, [opened.model_name])
    key = ("of", "task", "form", "latents")
    saved = SavedRecords(config.output / "scores.jsonl", of, ProbeScore, key)
    for name in tqdm(names, "Tasks", unit="tasks"):
        if not all(saved.has(own, name, form, 0) for own, form in _wanted(opened, coders)):
            task = load_task(name, config.test_examples)
            read = partial(last_states, opened, task, hooks)
            path = config.output / "activations" / f"{name}.safetensors"
            states = states_saved(path, of, hooks, read)
            saved.add(fits.fit_all(list(_probes(opened, coders, task, states, saved))))
    scores = [score for score in saved.records if score.task in names]
    return list(_probed(opened, coders, names, scores))


def _coders(opened: OpenedModel, config: ProbeConfig) -> list[_ToProbe]:
    """The coders to probe, with their bits on the text."""
    for candidate in opened.candidates:
        if reads_sequences(candidate.coder):
            raise ValueError(
                f"{candidate.name}: reads whole sequences, and probes read one token's code. Leave "
                "it out."
            )
    running = RunningCoders(opened)
    for batch in read_text(opened, config, "Counting bits"):
        deque(running.add(batch), maxlen=0)  # counts, and keeps nothing of what it yields
    found: list[_ToProbe] = []
    for candidate, figures in zip(opened.candidates, running.figures(), strict=True):
        of = fingerprint([candidate], Reading(0, 0, "", False), [])
        forms = (fits.VALUES, fits.ONES) if figures.stores_values else (fits.ONES,)
        found.append(_ToProbe(candidate, of, forms, figures))
    return found


def _hooks(opened: OpenedModel) -> list[str]:
    """The model's names of the hooks that coders read, each once."""
    read = (opened.hooks[candidate.site][0] for candidate in opened.candidates)
    return list(dict.fromkeys(read))


def _wanted(opened: OpenedModel, coders: list[_ToProbe]) -> Iterator[tuple[str, str]]:
    """`of` and form of all probes of a task."""
    yield from ((hook, fits.STATES) for hook in _hooks(opened))
    yield from ((coder.of, form) for coder in coders for form in coder.forms)


def _probes(
    opened: OpenedModel,
    coders: list[_ToProbe],
    task: Task,
    states: dict[str, Tensor],
    saved: SavedRecords[ProbeScore],
) -> Iterator[Probe]:
    """The probes of a task that have no score yet."""
    for hook in _hooks(opened):
        if not saved.has(hook, task.name, fits.STATES, 0):
            yield fits.probe_of_states(hook, task, states[hook])
    for coder in coders:
        forms = [form for form in coder.forms if not saved.has(coder.of, task.name, form, 0)]
        if forms:
            own = states[opened.hooks[coder.candidate.site][0]][:, None]
            where = torch.ones(own.shape[:2], dtype=torch.bool)
            codes = codes_of(coder.candidate.coder, own, where).float().cpu()
            yield from fits.probes_of_codes(coder.of, task, codes, forms)


def _probed(
    opened: OpenedModel, coders: list[_ToProbe], names: list[str], scores: list[ProbeScore]
) -> Iterator[Probed]:
    """The rows of the table: hidden states of each hook, and each form of each coder."""

    def of(name: str, key: str, form: str, bits: float | None) -> Probed:
        own = [score for score in scores if (score.of, score.form) == (key, form)]
        return Probed(name, form, bits, sorted(own, key=lambda score: names.index(score.task)))

    hooks = _hooks(opened)
    for hook in hooks:
        yield of(fits.STATES if len(hooks) == 1 else hook, hook, fits.STATES, None)
    for coder in coders:
        for form in coder.forms:
            figures = coder.figures
            bits = figures.bits if form == fits.VALUES else figures.entropy_bits
            yield of(coder.candidate.name, coder.of, form, bits.value)
