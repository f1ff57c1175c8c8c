"""Rules for tasks of sae-probes, on codes of the last token of each text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.probe.config import ProbeConfig
from sae_binary_ext.commands.probe.probe_fits import ONES, probes_of_codes
from sae_binary_ext.commands.probe.probe_tasks import (
    Reading,
    Task,
    last_states,
    load_task,
    reading_of,
    states_saved,
    task_names,
)
from sae_binary_ext.commands.rules.config import TASK, TASKS, RulesConfig
from sae_binary_ext.commands.rules.rule_codes import LabelledRows, PackedCodes
from sae_binary_ext.commands.rules.rule_scores import PROBED, RuleScore, score_rule
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.in_model import codes_of, reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, fingerprint
from sae_binary_ext.measure.saved_records import SavedRecords


@dataclass(frozen=True)
class _Settings:
    """All that the rules of a coder depend on, besides the model's name and the coder."""

    reading: Reading
    clauses: int
    literals: int


def tasks_of(config: RulesConfig) -> list[str]:
    """Names of the tasks that labels name; ValueError if sae-probes has no such task."""
    names: list[str] = []
    for label in config.read_labels():
        if label.kind == TASK:
            names += task_names(_as_probe(config, names=[label.of]))
        elif label.kind == TASKS:
            names += task_names(_as_probe(config, tasks=int(label.of)))
    return list(dict.fromkeys(names))


def score_tasks(
    opened: OpenedModel, config: RulesConfig, names: list[str]
) -> list[tuple[Candidate, RuleScore]]:
    """Fit and measure rules of all coders for tasks; go on after what an earlier run has done.

    ValueError if a coder reads sequences.
    """
    for candidate in opened.candidates:
        if reads_sequences(candidate.coder):
            raise ValueError(
                f"{candidate.name}: reads whole sequences, and tasks need the code of one token. "
                "Leave it out, or leave out labels of tasks."
            )
    settings = _Settings(
        reading_of(opened, _as_probe(config)), int(config.clauses), int(config.literals)
    )
    of = fingerprint([], settings, [opened.model_name])
    saved = SavedRecords(config.output / "rules.jsonl", of, RuleScore, ("of", "label"))
    coders = {fingerprint([each], settings, []): each for each in opened.candidates}
    for name in tqdm(names, "Tasks", unit="tasks"):
        missing = {own: each for own, each in coders.items() if not saved.has(own, _label(name))}
        if missing:
            saved.add(_scores(opened, config, name, missing))
    wanted = set(map(_label, names))
    return [
        (coders[each.of], each)
        for each in saved.records
        if each.label in wanted and each.of in coders
    ]


def _label(name: str) -> str:
    return f"{TASK}:{name}"


def _as_probe(config: RulesConfig, names: list[str] | None = None, tasks: int = 1) -> ProbeConfig:
    """The settings with which `probe` reads the same tasks."""
    return ProbeConfig(
        output=config.output,
        context_size=config.context_size,
        device=config.device,
        names=names or [],
        tasks=tasks,
    )


def _scores(
    opened: OpenedModel, config: RulesConfig, name: str, coders: dict[str, Candidate]
) -> Iterator[RuleScore]:
    """Scores of coders, by fingerprint, on one task."""
    as_probe = _as_probe(config)
    reading = reading_of(opened, as_probe)
    task = load_task(name, as_probe.test_examples)
    hooks = {opened.hooks[each.site][0] for each in opened.candidates}
    read = partial(last_states, opened, task, hooks)
    path = config.output / "activations" / f"{name}.safetensors"
    of_states = fingerprint([], reading, [opened.model_name])
    states = states_saved(path, of_states, hooks, read)
    texts = torch.arange(len(task.texts))
    rows = LabelledRows(task.labels.bool(), texts, texts < task.training)
    for own, candidate in coders.items():
        at_hook = states[opened.hooks[candidate.site][0]][:, None]
        where = torch.ones(at_hook.shape[:2], dtype=torch.bool)
        codes = codes_of(candidate.coder, at_hook, where).float().cpu()
        probe = partial(_probe_area, own, task, codes)
        limits = int(config.clauses), int(config.literals)
        yield score_rule(own, _label(name), PackedCodes.of(codes), rows, limits, probe)


def _probe_area(of: str, task: Task, codes: Tensor) -> float:
    """AUC of sae-probes' probe of PROBED latents, which reads which of them are active."""
    probes = probes_of_codes(of, task, codes, [ONES])
    return next(each for each in probes if each.latents == PROBED).fit().auc
