"""Probes of sae-probes on hidden states and on codes, and their scores."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from joblib import Parallel, delayed
from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
from sae_probes.utils_training import find_best_reg
from torch import Tensor

from sae_binary_ext.commands.probe.config import LATENTS
from sae_binary_ext.commands.probe.probe_tasks import SEED, Task

# What a probe reads: the model's states, values of active latents, or which latents are active.
STATES, VALUES, ONES = "hidden states", "values", "active latents"


@dataclass(frozen=True)
class ProbeScore:
    """Score of one probe on the test examples of one task.

    Attributes:
        of: fingerprint of the coder, or the hook of hidden states.
        form: what the probe reads: STATES, VALUES or ONES.
        latents: number of latents that the probe reads; 0 for all.
        auc: area under the ROC curve; chance gives 0.5.
        accuracy: share of right answers.
    """

    of: str
    task: str
    form: str
    latents: int
    auc: float
    accuracy: float


@dataclass(frozen=True)
class Probe:
    """Inputs of one probe, float32 or bool [texts, width], and its place in the scores.

    penalty: "l1" or "l2", as sae-probes' find_best_reg takes it.
    """

    of: str
    task: Task
    form: str
    latents: int
    inputs: Tensor
    penalty: str

    def fit(self) -> ProbeScore:
        """Train the probe and test it. sae-probes chooses the strength of the penalty."""
        inputs, labels, first = self.inputs, self.task.labels, self.task.training
        with warnings.catch_warnings():
            # sae-probes names penalties as scikit-learn did before 1.8, which warns of it.
            warnings.simplefilter("ignore")
            found = find_best_reg(
                inputs[:first],
                labels[:first],
                inputs[first:],
                labels[first:],
                penalty=self.penalty,
                seed=SEED,
            ).metrics
        score = found.test_auc, found.test_acc
        return ProbeScore(self.of, self.task.name, self.form, self.latents, *score)


def fit_all(probes: list[Probe]) -> list[ProbeScore]:
    """Fit probes in as many processes as there are cores, each with one thread."""
    return list[Any](Parallel(n_jobs=-1)(delayed(Probe.fit)(probe) for probe in probes))


def probe_of_states(hook: str, task: Task, states: Tensor) -> Probe:
    """The probe of all dimensions of the hidden states [texts, width]: sae-probes' baseline."""
    return Probe(hook, task, STATES, 0, states, "l2")


def probes_of_codes(of: str, task: Task, codes: Tensor, forms: list[str]) -> Iterator[Probe]:
    """Probes of the best latents of codes [texts, latents], and of all latents, in each form.

    sae-probes ranks latents by the difference of their means over the two labels, on the training
    examples. It has no probe of all latents. That probe gets the penalty of its baseline, since
    with the other one a fit of a thousand latents takes minutes.
    """
    training = codes[: task.training]
    ranked = get_sorted_indices(training, task.labels[: task.training], mean_act_normalization)
    # The weight of a latent that is silent in training stays 0.
    fired = (training != 0).any(0).nonzero()[:, 0]
    for form in forms:
        shown = codes != 0 if form == ONES else codes
        for number in LATENTS:
            yield Probe(of, task, form, number, shown[:, ranked[:number]], "l1")
        yield Probe(of, task, form, 0, shown[:, fired], "l2")
