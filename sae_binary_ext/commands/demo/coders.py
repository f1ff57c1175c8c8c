"""The coders that the demo compares, and their training in SAELens' own trainer."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.bundled.smollm2 import MODEL_NAME
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig

# Number of batches from which SAELens estimates the norm of activations before training.
NORM_BATCHES = 20


class CoderPlan(NamedTuple):
    """One coder of the demo. Its learning rate was chosen on training tokens alone."""

    name: str
    sae: sae_lens.TrainingSAEConfig
    lr: float


def plan_coders(config: DemoConfig, d_in: int) -> list[CoderPlan]:
    """The demo's coders. Inputs of all coders are scaled to the same norm.

    The stock coders' settings come from a few short runs on training tokens, not from a search.
    topk has decoder_init_norm 1.0, because 71% of its latents died at SAELens' default of 0.1. The
    learning rate of topk is the best of 1e-3, 2e-3 and 3e-3. jumprelu has the only setting, among
    those tried, with about k active latents and a low error. SAELens' dead_feature_window of 1000
    steps is longer than the demo's training, so topk has no auxiliary loss.
    """
    shared: dict[str, Any] = {"d_in": d_in, "normalize_activations": "expected_average_only_in"}
    wide: dict[str, Any] = {**shared, "d_sae": config.expansion * d_in}
    narrow: dict[str, Any] = {**shared, "d_sae": config.expansion // 2 * d_in}
    jumprelu = sae_lens.JumpReLUTrainingSAEConfig(
        **wide,
        l0_coefficient=1.0,
        jumprelu_ste_to_input=True,
        jumprelu_init_threshold=0.5,
        jumprelu_bandwidth=0.5,
        decoder_init_norm=1.0,
    )
    topk = sae_lens.TopKTrainingSAEConfig(**wide, k=config.k, decoder_init_norm=1.0)
    term_off = BinaryEntropyTrainingSAEConfig(**narrow, entropy_coefficient=0.0)
    return [
        CoderPlan("binary", BinaryTrainingSAEConfig(**wide, k=config.k), lr=3e-3),
        CoderPlan("binary_entropy", BinaryEntropyTrainingSAEConfig(**narrow), lr=2e-3),
        CoderPlan("binary_entropy, term off", term_off, lr=2e-3),
        CoderPlan("topk", topk, lr=1e-3),
        CoderPlan("jumprelu", jumprelu, lr=1e-3),
    ]


class RecordingTrainer(sae_lens.SAETrainer[Any, Any]):
    """SAELens' trainer, which also keeps the FVU of each step; SAELens sends FVUs to wandb only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fvu_by_step: list[Tensor] = []

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        mse = output.losses["mse_loss"].detach()
        self.fvu_by_step.append(mse / total_variance(output.sae_in))
        return output


class Trained(NamedTuple):
    """Folder of a saved inference coder, seconds of its training, and FVU of each batch."""

    folder: Path
    seconds: float
    fvu_by_step: list[float]


def train_coder(plan: CoderPlan, config: DemoConfig, activations: Tensor) -> Trained:
    """Train one coder on activations, float16 [tokens, d_in], and save its inference form."""
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
    """Endless float32 batches [batch_size, d_in], shuffled; a token occurs once in an epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for batch in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield activations[batch].float()


def trainer_on(
    activations: Tensor,
    sae: sae_lens.TrainingSAEConfig,
    batch_size: int,
    seed: int,
    trainer: type[Any] = sae_lens.SAETrainer,
    **settings: Any,
) -> Any:
    """SAELens' trainer for a new coder on shuffled activations; settings go to SAETrainerConfig."""
    torch.manual_seed(seed)
    config = SAETrainerConfig(
        train_batch_size_samples=batch_size,
        n_batches_for_norm_estimate=NORM_BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
        **settings,
    )
    batches = shuffled_batches(activations, batch_size, seed)
    return trainer(config, sae_lens.TrainingSAE.from_dict(sae.to_dict()), batches)
