"""Training runs that may be killed at any moment, and that resume from their last checkpoint."""

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAETrainingRunner, SAETrainer
from sae_lens.constants import RUNNER_CFG_FILENAME
from safetensors.torch import load_file

from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.integration.saelens_helpers import runner_config
from tests.integration.sparsify_helpers import token_rows, trainer_for

# Type of a counter in memory that the killing process shares.
Count: TypeAlias = "Synchronized[int]"
# Arguments: the model's folder, the run's folder, steps done, and saves begun.
Train: TypeAlias = Callable[[Path, Path, Count, Count], None]

KILLS = 20
STEPS = 500
CONTEXT, PROMPTS = 16, 8
# These losses make a run depend on random numbers, schedules and firing counters too.
SAELENS_CODER = BinaryEntropyTrainingSAEConfig(
    d_in=16,
    d_sae=64,
    k=8,
    selection="gumbel",
    entropy_warm_up_steps=STEPS,
    covariance_coefficient=1e-4,
    covariance_sample=16,
    pre_act_loss_coefficient=1e-3,
    normalize_activations="expected_average_only_in",
)
SPARSIFY_CODER = BinarySparseCoderConfig(
    num_latents=64,
    k=8,
    activation="gumbel_binary",
    entropy_alpha=1e-3,
    entropy_warm_up_steps=STEPS,
    covariance_alpha=1e-4,
    covariance_sample=16,
)


def train_in_saelens(model: Path, folder: Path, steps: Count, saves: Count) -> None:
    """Run SAELens' runner to the end, on rows that its store does not shuffle."""
    count_calls(SAETrainer, "step", steps)
    count_calls(SAETrainer, "save_checkpoint", saves)
    rows = token_rows(STEPS * PROMPTS + 200, CONTEXT, 60)
    tokens = PROMPTS * (CONTEXT - 1)
    config = runner_config(
        SAELENS_CODER,
        model,
        Path("rows in memory"),
        folder / "coder",
        is_dataset_tokenized=True,
        context_size=CONTEXT,
        store_batch_size_prompts=PROMPTS,
        n_batches_in_buffer=PROMPTS,
        activations_mixing_fraction=0.0,
        train_batch_size_tokens=tokens,
        training_tokens=STEPS * tokens,
        lr_scheduler_name="cosineannealing",
        lr_end=1e-4,
        dead_feature_window=20,
        n_checkpoints=STEPS // 4,
        checkpoint_path=str(folder / "checkpoints"),
        resume_from_checkpoint=last_checkpoint(folder / "checkpoints"),
    )
    torch.manual_seed(0)
    dataset = Dataset.from_dict({"tokens": rows.tolist()})
    LanguageModelSAETrainingRunner(config, override_dataset=dataset).run()


def last_checkpoint(folder: Path) -> str | None:
    """SAELens' latest complete checkpoint: one with the runner's config, which is written last."""
    whole = [path.parent for path in folder.glob(f"*/*/{RUNNER_CFG_FILENAME}") if is_json(path)]
    return str(max(whole, key=lambda path: int(path.name))) if whole else None


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except json.JSONDecodeError:
        return False
    return True


def train_in_sparsify(model: Path, folder: Path, steps: Count, saves: Count) -> None:
    """Run sparsify's Trainer to the end."""
    torch.manual_seed(0)
    trainer = trainer_for(
        model,
        SPARSIFY_CODER,
        token_rows(STEPS * 4, CONTEXT, 60),
        folder,
        hookpoints=["layers.0.mlp", "layers.1.mlp"],
        optimizer="adam",
        lr=3e-3,
        lr_warmup_steps=100,
        auxk_alpha=0.1,
        dead_feature_threshold=2000,
        save_every=4,
    )
    if (folder / "run" / "state.pt").exists():
        trainer.load_state(str(folder / "run"))
    count_calls(trainer.model, "forward", steps)
    count_calls(trainer, "save", saves)
    trainer.fit()


def count_calls(owner: Any, name: str, calls: Count) -> None:
    """Count the calls of a method in memory that the killing process shares."""
    method = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.value += 1
        return method(*args, **kwargs)

    setattr(owner, name, counted)


def kill_and_resume(train: Train, model: Path, folder: Path) -> None:
    """Train once without a break and once with 20 kills. Raise an error if the weights differ.

    Call this function in a new process that has trained nothing. Its forks do the training.
    """
    processes = multiprocessing.get_context("fork")

    def start(name: str) -> tuple[Any, Count, Count]:
        steps, saves = processes.Value("i", 0), processes.Value("i", 0)
        process = processes.Process(target=train, args=(model, folder / name, steps, saves))
        process.start()
        return process, steps, saves

    unbroken, steps, _ = start("unbroken")
    unbroken.join()
    assert unbroken.exitcode == 0
    assert steps.value == STEPS

    moments = random.Random(0)
    trained = 0
    for kill in range(KILLS):
        process, steps, saves = start("broken")
        wait_for(process, steps, moments.randint(1, STEPS // KILLS))
        if kill % 2:  # kill every second run in a save
            wait_for(process, saves, saves.value + 1)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        trained += steps.value
    last, steps, _ = start("broken")
    last.join()
    assert last.exitcode == 0
    # The last run resumed from a checkpoint, and steps that kills had undone were trained again.
    assert steps.value < STEPS < trained + steps.value

    whole, mended = weights_of(folder / "unbroken"), weights_of(folder / "broken")
    assert whole.keys() == mended.keys()
    different = [name for name, tensor in whole.items() if not tensor.equal(mended[name])]
    assert not different, different


def wait_for(process: Any, count: Count, wanted: int) -> None:
    """Wait until a count is reached or the process has ended."""
    while count.value < wanted and process.is_alive():
        time.sleep(0.001)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the trained coders, by file and name, without those of earlier checkpoints."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in folder.rglob("*.safetensors")
        if "checkpoints" not in path.parts
        for name, tensor in load_file(path).items()
    }
