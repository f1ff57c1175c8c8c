"""The coders the demo compares, and their training in SAELens' own trainer."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    JumpReLUTrainingSAEConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.bundled.smollm2 import MODEL_NAME
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig

# Batches SAELens reads to estimate the activations' norm before it trains.
NORM_BATCHES = 20


@dataclass(frozen=True)
class CoderPlan:
    """One row of the comparison.

    Attributes:
        name: row label and folder name.
        sae: SAELens training config.
        lr: Adam's learning rate, chosen on training tokens alone.
    """

    name: str
    sae: TrainingSAEConfig
    lr: float


def plan_coders(config: DemoConfig, d_in: int) -> list[CoderPlan]:
    """The demo's coders, all on inputs scaled to the same norm.

    The stock coders' settings come from a few short runs on training tokens, not from a search:
    topk with decoder_init_norm 1.0, because at SAELens' default of 0.1 it ended with 71% of its
    latents dead, and the best of the learning rates 1e-3, 2e-3 and 3e-3; jumprelu with the one
    tried setting that came near k active latents and a low error. SAELens' dead_feature_window of
    1000 is longer than the demo trains, so topk's auxiliary loss never comes into force.
    """
    shared: dict[str, Any] = {"d_in": d_in, "normalize_activations": "expected_average_only_in"}
    wide: dict[str, Any] = {**shared, "d_sae": config.expansion * d_in}
    narrow: dict[str, Any] = {**shared, "d_sae": config.expansion // 2 * d_in}
    return [
        CoderPlan("binary", BinaryTrainingSAEConfig(**wide, k=config.k), lr=3e-3),
        CoderPlan("binary_entropy", BinaryEntropyTrainingSAEConfig(**narrow), lr=2e-3),
        CoderPlan(
            "binary_entropy, term off",
            BinaryEntropyTrainingSAEConfig(**narrow, entropy_coefficient=0.0),
            lr=2e-3,
        ),
        CoderPlan(
            "topk", TopKTrainingSAEConfig(**wide, k=config.k, decoder_init_norm=1.0), lr=1e-3
        ),
        CoderPlan(
            "jumprelu",
            JumpReLUTrainingSAEConfig(
                **wide,
                l0_coefficient=1.0,
                jumprelu_ste_to_input=True,
                jumprelu_init_threshold=0.5,
                jumprelu_bandwidth=0.5,
                decoder_init_norm=1.0,
            ),
            lr=1e-3,
        ),
    ]


class RecordingTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer, with the FVU of each step kept. SAELens logs it to wandb only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fvu_by_step: list[Tensor] = []

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        fvu = output.losses["mse_loss"].detach() / total_variance(output.sae_in)
        self.fvu_by_step.append(fvu)
        return output


@dataclass(frozen=True)
class Trained:
    """A saved coder and figures of its training.

    Attributes:
        folder: where the inference coder was saved.
        seconds: wall-clock time of the training steps.
        fvu_by_step: FVU of each training batch.
    """

    folder: Path
    seconds: float
    fvu_by_step: list[float]


def train_coder(plan: CoderPlan, config: DemoConfig, activations: Tensor) -> Trained:
    """Train one coder in SAELens' trainer and save its inference form.

    Args:
        plan: what to train.
        config: the demo's settings.
        activations: float16 [tokens, d_in]; every coder sees them in the same order.
    """
    plan.sae.metadata = SAEMetadata(
        model_name=MODEL_NAME,
        hook_name=config.hook_name,
        context_size=config.context_size,
        prepend_bos=True,
        seqpos_slice=(FIRST_POSITION, None),
    )
    trainer = trainer_on(
        activations,
        plan.sae,
        config.batch_size,
        config.seed,
        RecordingTrainer,
        total_training_samples=config.epochs * len(activations),
        lr=plan.lr,
        lr_end=plan.lr / 10,
    )
    started = time.perf_counter()
    coder = trainer.fit()
    seconds = time.perf_counter() - started
    folder = config.output / "coders" / plan.name.replace(", ", "_").replace(" ", "_")
    coder.save_inference_model(folder)
    return Trained(folder, seconds, torch.stack(trainer.fvu_by_step).tolist())


def shuffled_batches(activations: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless float32 batches [batch_size, d_in], each token once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for batch in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield activations[batch].float()


def trainer_on(
    activations: Tensor,
    sae: TrainingSAEConfig,
    batch_size: int,
    seed: int,
    trainer: type[Any] = SAETrainer,
    **settings: Any,
) -> Any:
    """SAELens' trainer of a new coder on shuffled activations; settings of SAETrainerConfig."""
    torch.manual_seed(seed)
    config = SAETrainerConfig(
        train_batch_size_samples=batch_size,
        n_batches_for_norm_estimate=NORM_BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
        **settings,
    )
    batches = shuffled_batches(activations, batch_size, seed)
    return trainer(config, TrainingSAE.from_dict(sae.to_dict()), batches)
