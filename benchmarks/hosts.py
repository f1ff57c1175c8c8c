"""Training steps of both hosts' own trainers, for stock coders and binary coders."""

import contextlib
import io
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from sae_lens import LoggingConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.measure import Runner, now, repeat

WIDTH = 576
CONTEXT = 64
MANY_BATCHES = 8


@dataclass(frozen=True)
class Settings:
    """Settings of a host's training.

    Attributes:
        device: torch's name of the device.
        autocast: whether SAELens' trainer runs its forward pass under autocast, in bfloat16.
            On a GPU, sparsify's stock coder always uses autocast.
        compiled: whether SAELens' forward pass is compiled, as by its setting compile_sae.
        dtype: dtype of SAELens' coder. sparsify's Trainer makes coders in float32.
    """

    device: str = "cpu"
    autocast: bool = False
    compiled: bool = False
    dtype: str = "float32"


PLAIN = Settings()


def random_activations(
    batches: int, tokens: int, device: str = "cpu", width: int = WIDTH
) -> Tensor:
    """Normal numbers, [batches, tokens, width]. A step takes the same time for any values."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batches, tokens, width, generator=generator).to(device)


def saelens_steps(config: TrainingSAEConfig, tokens: int, settings: Settings = PLAIN) -> Runner:
    """Times steps of SAELens' trainer: both passes, statistics, clipping, optimiser, scheduler."""
    batches = random_activations(MANY_BATCHES, tokens, settings.device, config.d_in)
    trainer = saelens_trainer(config, batches, settings)

    def run(times: int) -> list[float]:
        seconds: list[float] = []
        for _ in range(times):
            batch = batches[trainer.n_training_steps % MANY_BATCHES]
            started = now(settings.device)
            trainer.step(batch)
            seconds.append(now(settings.device) - started)
            trainer.n_training_steps += 1
        return seconds

    return run


def saelens_optimiser(config: TrainingSAEConfig, tokens: int) -> Runner:
    """Steps of the optimiser alone: no training step can be faster."""
    trainer = saelens_trainer(config, random_activations(1, tokens), PLAIN)
    return _optimiser(trainer.sae, trainer.optimizer)


def saelens_trainer(
    config: TrainingSAEConfig, batches: Tensor, settings: Settings
) -> SAETrainer[Any, Any]:
    """SAELens' trainer of a new coder, with settings as its runner makes them."""
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(
        config.to_dict() | {"device": settings.device, "dtype": settings.dtype}
    )
    if settings.compiled:
        # SAELens' runner compiles the step in the same way.
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    return SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=batches.shape[1],
            lr=1e-3,
            lr_end=1e-4,
            device=settings.device,
            autocast=settings.autocast,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(batches),
    )


def _optimiser(coder: nn.Module, optimiser: Any) -> Runner:
    for parameter in coder.parameters():
        parameter.grad = torch.randn_like(parameter)
    # The lambda keeps the optimiser alive. Its method `step` does not: SAELens' scheduler wraps it.
    return repeat(lambda: optimiser.step())


class TableConfig(PretrainedConfig):
    model_type = "activation_table"
    num_hidden_layers = 1


class ActivationTable(PreTrainedModel):
    """A model whose first layer looks up its activations, so that it takes almost no time."""

    config_class = TableConfig

    def __init__(self, activations: Tensor) -> None:
        super().__init__(TableConfig())
        self.layers = nn.ModuleList([nn.Identity()])
        self.table = nn.Embedding.from_pretrained(activations)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layers[0](self.table(input_ids))


class OnlyTraining(Trainer):
    """sparsify's Trainer, but without the checkpoint at the end of training."""

    def save(self) -> None:
        pass


def sparsify_steps(
    config: SparseCoderConfig, tokens: int, settings: Settings = PLAIN, width: int = WIDTH
) -> Runner:
    """Times steps of sparsify's Trainer, with its default optimiser, from one batch to the next.

    Each call of the runner trains a new coder. The first two steps are not counted, because one of
    them also initialises the coder.
    """
    device = settings.device
    activations = random_activations(MANY_BATCHES, tokens, device, width).flatten(0, 1)
    rows = torch.arange(len(activations)).view(-1, CONTEXT)
    rows_a_batch = tokens // CONTEXT

    def run(times: int) -> list[float]:
        starts: list[float] = []
        model = ActivationTable(activations)
        model.register_forward_pre_hook(lambda *_: starts.append(now(device)))
        taken = torch.arange((times + 3) * rows_a_batch) % len(rows)
        with quiet():
            _sparsify_trainer(config, model, rows[taken], rows_a_batch).fit()
        # The first passes are dropped: the Trainer runs the model a few times to warm up.
        return [after - before for before, after in itertools.pairwise(starts)][-times:]

    return run


def sparsify_optimiser(config: SparseCoderConfig, tokens: int) -> Runner:
    """Steps of the optimiser alone: no training step can be faster."""
    rows = torch.arange(tokens).view(-1, CONTEXT)
    model = ActivationTable(random_activations(1, tokens).flatten(0, 1))
    with quiet():
        trainer = _sparsify_trainer(config, model, rows, len(rows))
    (coder,), (optimiser,) = trainer.saes.values(), trainer.optimizers
    optimiser.train()
    return _optimiser(coder, optimiser)


def _sparsify_trainer(
    config: SparseCoderConfig, model: ActivationTable, rows: Tensor, rows_a_batch: int
) -> OnlyTraining:
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    settings = TrainConfig(config, batch_size=rows_a_batch, layers=[0], lr=1e-3, log_to_wandb=False)
    return OnlyTraining(settings, dataset, model)


@contextlib.contextmanager
def quiet() -> Any:
    streams = io.StringIO()
    with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
        yield
