"""Trains one coder in SAELens' SyntheticSAERunner and measures what it recovers."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig

from benchmarks.synthetic import cases
from benchmarks.synthetic.cases import Case
from benchmarks.synthetic.recovery import find_groups

GROUP_SAMPLES = 20_000


@dataclass(frozen=True)
class Run:
    """A coder to train: its world, its case and its seed."""

    world: str
    case: Case
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return asdict(self)


def one_thread() -> None:
    """Prepare a process that trains coders."""
    torch.set_num_threads(1)


def make(run: Run) -> dict[str, Any]:
    """Train and measure one coder; a line of the file of results."""
    world = cases.new_world(run.world)
    torch.manual_seed(run.seed)
    settings = SyntheticSAERunnerConfig(
        synthetic_model=world.cfg,
        sae=run.case.config(),
        training_samples=cases.SAMPLES,
        batch_size=cases.BATCH,
        lr=run.case.lr,
        lr_end=0.0,
        lr_decay_steps=cases.SAMPLES // cases.BATCH,
        adam_beta2=0.99,
        dead_feature_window=100,
        n_batches_for_norm_estimate=20,
        eval_samples=cases.EVAL_SAMPLES,
        output_path=None,
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    started = time.perf_counter()
    result = SyntheticSAERunner(settings, override_synthetic_model=world).run()
    seconds = time.perf_counter() - started
    assert result.final_eval is not None
    groups = find_groups(result.sae, world, GROUP_SAMPLES)
    levels = cases.levels_of_features()
    chosen = {"all": torch.ones_like(levels, dtype=torch.bool)}
    if run.world == "levels":
        chosen |= {str(level): levels == level for level in cases.LEVELS}
    return {
        **run.key(),
        **result.final_eval.to_dict(),
        "groups": {name: groups.summary(which) for name, which in chosen.items()},
        "seconds": round(seconds),
    }
