"""`sae-binary gradients`: what surrogates let through in training, and how far to trust it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.commands.gradients.config import BATCH, GradientsConfig
from sae_binary_ext.commands.gradients.gradient_probe import GradientFigures, probe_gradients
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.hidden_states import states_of_layers
from sae_binary_ext.measure.reading import open_model_alone, settings_of
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.report.plots import error_bars
from sae_binary_ext.saelens import BinaryTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE, NORM_BATCHES = 3e-3, 20
# Of the table and the curves over training: a tenth of a pre-activation's standard deviation.
SHOWN_BUMP, SHOWN_PROMISE = 0.1, 0.01
REMARKS = (
    "The loss of a binary coder is a staircase in its encoder: its derivative is 0 wherever it "
    "exists, and a surrogate stands in. A coder was trained with each surrogate on the same "
    "activations in the same order; at some steps its surrogate gradient was taken on a batch that "
    "it is not trained on, and compared with what steps do to the true loss there: the bias of one "
    "latent raised and lowered by a share of its pre-activation's standard deviation, codes "
    "selected anew. Cosine and signs are over latents drawn from those that fire on the batch.",
    "Kept: the whole encoder moved against its gradient by a step that should take 1% of the loss, "
    "as the gradient has it; 1 where it takes that, 0 where nothing changes, below 0 where the "
    "loss rises. Norms of different surrogates are not to be compared: Adam takes the scale out.",
    "A low agreement does not say that training fails: errors of single latents may cancel over "
    "many steps, and Adam's steps are not the gradient's. It is the gradient of the squared error "
    "alone, of this batch, for this width, selection and temperature. With topk, latents that are "
    "near to firing learn as well (surrogate_latents, see the README).",
    "Brackets: 95% of bootstrap replicates over latents.",
)
COLUMNS = (
    Column("surrogate"),
    Column("step", "Of training.", "d"),
    Column("FVU", "Of the batch.", ".3f"),
    Column("with gradient", "Share of all latents whose bias has one.", ".1%"),
    Column("norm", "Of the gradient of the encoder's weights.", ".3g"),
    Column("moved", "Share of the bumped latents that change the loss.", ".1%"),
    Column("cosine", "Of surrogate gradients with the changes of the loss.", ".2f"),
    Column("signs", "Share of latents where both go the same way.", ".2f"),
    Column("kept", "Of what a step of 1% of the loss promises.", ".2f"),
)


@dataclass(frozen=True)
class Probe:
    """Gradients at a step of training.

    Attributes:
        surrogate: with which the coder was trained.
        step: steps done.
        figures: what was found.
    """

    surrogate: str
    step: int
    figures: GradientFigures


def run_gradients(config: GradientsConfig) -> Analysis:
    """Train and measure; files go to config.output.

    Raises:
        ValueError: the model lacks the hook, or there is too little text.
    """
    opened = open_model_alone(config, config.output)
    hook = resolve_hook(opened.model, "hook", config.hook or "")
    (states,) = states_of_layers(opened, config, {0: hook}, config.tokens).values()
    held_out, states = states[: config.probe_tokens].float(), states[config.probe_tokens :]
    if len(states) < BATCH:
        raise ValueError(
            f"tokens={config.tokens}: the text has {len(states)} beside those to measure on, and a "
            f"step of training takes {BATCH}. Give a longer text."
        )
    probes: list[Probe] = []
    for surrogate in tqdm(config.surrogates or list(SURROGATES), "Surrogates", unit="coders"):
        probes += train_and_probe(surrogate, states, held_out, config)
    analysis = Analysis(
        "gradients",
        "Surrogate gradients and the true loss",
        REMARKS,
        [Table("Over training", COLUMNS, [_row(probe) for probe in probes])],
        {
            "Cosine over training": _over_training(probes, lambda f: _shown(f).cosine.value),
            "Latents with a gradient": _over_training(probes, lambda f: f.latents),
            "Kept of a step's promise": _over_training(probes, lambda f: f.kept[SHOWN_PROMISE]),
            "Cosine by size of the step": _by_bump(probes),
        },
        {"probes": [_described(probe) for probe in probes]},
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


class _ProbingTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer, which stops at some steps for a measurement."""

    probe: Callable[[int, Any], None]

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        self.probe(self.n_training_steps + 1, self)
        return output


def train_and_probe(
    surrogate: str, states: Tensor, held_out: Tensor, config: GradientsConfig
) -> list[Probe]:
    """Train a coder and measure its gradients on the way.

    Args:
        surrogate: which.
        states: [states, width], to train on.
        held_out: float32 [tokens, width], to measure on.
        config: the rest.
    """
    torch.manual_seed(config.seed)
    settings = BinaryTrainingSAEConfig(
        d_in=states.shape[1],
        d_sae=config.latents,
        k=config.k,
        selection=config.selection,
        surrogate=surrogate,
        surrogate_temperature=config.surrogate_temperature,
        normalize_activations="expected_average_only_in",
    )
    trainer = _ProbingTrainer(
        SAETrainerConfig(
            total_training_samples=config.training_states // BATCH * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            n_batches_for_norm_estimate=NORM_BATCHES,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        TrainingSAE.from_dict(settings.to_dict()),
        shuffled_batches(states, BATCH, config.seed),
    )
    steps, found = set(config.probe_steps()), list[Probe]()

    def probe(step: int, trainer: Any) -> None:
        if step in steps:
            x = trainer.activation_scaler(held_out)
            figures = probe_gradients(trainer.sae, x, config.probed_latents, config.seed)
            found.append(Probe(surrogate, step, figures))

    trainer.probe = probe
    trainer.fit()
    return found


def _shown(figures: GradientFigures) -> Any:
    return next(each for each in figures.agreements if each.bump == SHOWN_BUMP)


def _row(probe: Probe) -> list[Value]:
    figures, shown = probe.figures, _shown(probe.figures)
    return [
        probe.surrogate,
        probe.step,
        figures.fvu,
        figures.latents,
        figures.weight_norm,
        shown.moved,
        shown.cosine,
        shown.signs,
        figures.kept[SHOWN_PROMISE],
    ]


def _described(probe: Probe) -> dict[str, Any]:
    figures = vars(probe.figures) | {"agreements": [vars(a) for a in probe.figures.agreements]}
    return {"surrogate": probe.surrogate, "step": probe.step} | figures


def _over_training(probes: list[Probe], value: Callable[[GradientFigures], float]) -> go.Figure:
    figure = go.Figure()
    for surrogate in dict.fromkeys(probe.surrogate for probe in probes):
        own = [probe for probe in probes if probe.surrogate == surrogate]
        figure.add_scatter(
            x=[probe.step for probe in own],
            y=[value(probe.figures) for probe in own],
            mode="lines+markers",
            name=surrogate,
        )
    figure.update_xaxes(title="training step", type="log")
    return figure


def _by_bump(probes: list[Probe]) -> go.Figure:
    """At the last step."""
    figure = go.Figure()
    last = {probe.surrogate: probe.figures for probe in probes}
    for surrogate, figures in last.items():
        cosines: list[Estimate] = [each.cosine for each in figures.agreements]
        figure.add_scatter(
            x=[each.bump for each in figures.agreements],
            y=[cosine.value for cosine in cosines],
            error_y=error_bars(cosines),
            mode="lines+markers",
            name=surrogate,
        )
    figure.update_xaxes(title="step, in standard deviations of the pre-activation", type="log")
    figure.update_yaxes(title="cosine")
    return figure
