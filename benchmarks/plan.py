"""Memory that `sae-binary plan` tells, beside the memory that training takes on this CPU.

Usage: OMP_NUM_THREADS=1 python -m benchmarks.plan
With MALLOC_MMAP_THRESHOLD_=1048576, glibc returns freed blocks of at least 1 MiB to the system.

Coders are those of the settings that the plan writes. A step is the host's own trainer's.
"""

import gc
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens import llm_sae_training_runner as saelens_runner
from sae_lens.load_model import HookedProxyLM
from simple_parsing import parse
from sparsify import TrainConfig
from sparsify.__main__ import RunConfig
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.hosts import PLAIN, ActivationTable, OnlyTraining, quiet, saelens_trainer
from benchmarks.measure import Runner, machine, peak_mebibytes, print_table
from sae_binary_ext.commands import PlanConfig
from sae_binary_ext.commands.plan.costs import Run, memory_of
from sae_binary_ext.commands.plan.host_settings import saelens_settings, sparsify_settings
from sae_binary_ext.commands.plan.model_sizes import find_sizes
from sae_binary_ext.saelens import train_transcoders

MEBI = 2**20
STEPS = 3
CONTEXT = 64
# A batch that brings the libraries' own memory into the process before it is measured.
WARM_UP = {"latents": 512, "batch_size": 128, "k": 4}


def case(host: str, architecture: str, *sizes: int, **settings: Any) -> PlanConfig:
    """A plan on the CPU; sizes are width, latents, tokens of a step and k."""
    width, latents, batch_size, k = sizes
    return PlanConfig(
        sizes=[f"hidden_size={width}"],
        host=host,
        architecture=architecture,
        latents=latents,
        batch_size=batch_size,
        k=k,
        context_size=CONTEXT,
        device="cpu",
        **settings,
    )


# The last two have arrays below 32 MiB, of which glibc keeps some after they are freed.
CASES = (
    case("saelens", "binary", 768, 24576, 1024, 32),
    case("saelens", "binary", 2048, 8192, 2048, 64),
    case("saelens", "binary_entropy", 768, 12288, 2048, 32),
    case("saelens", "binary_refined", 768, 12288, 1024, 32),
    case("saelens", "topk", 768, 12288, 1024, 32),
    case("saelens", "binary", 768, 16384, 2048, 64, transcoder=True),
    case("saelens", "topk", 768, 12288, 1024, 32, transcoder=True),
    case("sparsify", "binary", 576, 18432, 2048, 32),
    case("sparsify", "binary", 768, 12288, 4096, 32, optimizer="adam"),
    case("sparsify", "binary_entropy", 768, 12288, 2048, 32),
    case("sparsify", "binary_refined", 768, 12288, 1024, 32),
    case("sparsify", "topk", 768, 12288, 1024, 32),
    case("sparsify", "binary", 1024, 16384, 1024, 64, transcoder=True),
    case("sparsify", "topk", 768, 12288, 1024, 64, transcoder=True),
    case("saelens", "binary_entropy", 576, 4608, 4096, 32),
    case("saelens", "topk", 576, 9216, 1024, 32),
)


def planned(config: PlanConfig) -> Run:
    return Run.of(config, find_sizes(config.model, config.sizes))


def host_config(run: Run) -> Any:
    """The host's config of a run, parsed from the settings that the plan writes."""
    write = saelens_settings if run.config.host == "saelens" else sparsify_settings
    settings = write(run.config, run.sizes, run.layer, run.latents)
    _, module, *words = shlex.split(settings, comments=True)
    if module == "sparsify":
        return parse(RunConfig, args=shlex.join(words))
    if module == "sae_lens.llm_sae_training_runner":
        return saelens_runner._parse_cfg_args([*words, "--verbose", "False"])  # pyright: ignore
    return train_transcoders.parse(words)


def warmed_up(prepare: Callable[[Run], Callable[[], None]], config: PlanConfig) -> Runner:
    """A runner that makes a coder and trains it; a small coder was trained before."""
    prepare(planned(replace(config, sizes=["hidden_size=64"], **WARM_UP)))()
    gc.collect()  # trainers and models are in cycles of references
    train = prepare(planned(config))

    def run(times: int) -> list[float]:
        train()
        return []

    return run


def saelens_steps(run: Run) -> Callable[[], None]:
    width = run.sizes.width * (1 + run.config.transcoder)
    batches = torch.randn(2, run.step_tokens, width)
    config = host_config(run).sae

    def train() -> None:
        trainer = saelens_trainer(config, batches, PLAIN)
        output: Any = None
        for step in range(STEPS):
            # As in the trainer's own loop, the last step's output lives until this step is done.
            output = trainer.step(batches[step % 2])
            trainer.n_training_steps += 1
        del output

    return train


def sparsify_steps(run: Run) -> Callable[[], None]:
    activations = torch.randn(2 * run.step_tokens, run.sizes.width)
    rows = (torch.arange(STEPS * run.step_tokens) % len(activations)).view(-1, CONTEXT)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    model, config = ActivationTable(activations), host_config(run)

    def train() -> None:
        settings = TrainConfig(
            config.sae,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            layers=[0],
            log_to_wandb=False,
        )
        with quiet():
            OnlyTraining(settings, dataset, model).fit()

    return train


def make_steps(config: PlanConfig) -> Runner:
    """Steps of the host's trainer on activations that are in memory already."""
    return warmed_up(saelens_steps if config.host == "saelens" else sparsify_steps, config)


def step_rows() -> Iterator[tuple[object, ...]]:
    for config in CASES:
        run = planned(config)
        told = memory_of(run).training / MEBI
        found = peak_mebibytes(make_steps, config)
        yield row_of(run, told, found)


# A model with SmolLM2's widths and random weights in float32, for whole runs.
MODEL: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
WHOLE_RUNS = tuple(
    PlanConfig(
        sizes=["torch_dtype=float32", *(f"{name}={size}" for name, size in MODEL.items())],
        host=host,
        architecture=architecture,
        transcoder=host == "sparsify" and architecture == "topk",
        layer=2,
        tokens=32768,
        batch_size=2048 if host == "sparsify" else 1024,
        context_size=128,
        store_batch_size_prompts=16,
        device="cpu",
    )
    for host in ("saelens", "sparsify")
    for architecture in ("binary", "topk")
)


def make_whole_run(config: PlanConfig) -> Runner:
    """A run of the host's own trainer: model, text, store, coder."""

    def prepare(run: Run) -> Callable[[], None]:
        rows = -(-run.config.tokens // CONTEXT)
        tokens = torch.randint(MODEL["vocab_size"], (rows, run.config.context_size))
        return lambda: _train_on_model(run, tokens.tolist())

    small = replace(config, latents=512, k=4, tokens=4096, batch_size=128, n_batches_in_buffer=16)
    prepare(planned(small))()
    gc.collect()
    train = prepare(planned(config))

    def run_once(times: int) -> list[float]:
        train()
        return []

    return run_once


def _train_on_model(run: Run, rows: list[list[int]]) -> None:
    config, model = (
        host_config(run),
        LlamaForCausalLM(LlamaConfig(**MODEL, tie_word_embeddings=True)),
    )
    if run.config.host == "saelens":
        config.output_path = config.checkpoint_path = None
        proxy = HookedProxyLM(model, None, hook_names=[config.hook_name])  # pyright: ignore
        dataset = Dataset.from_dict({"tokens": rows})
        with quiet():
            LanguageModelSAETrainingRunner(config, dataset, proxy).run()
        return
    dataset = Dataset.from_dict({"input_ids": rows}).with_format("torch")
    dataset = dataset.select(range(STEPS * config.batch_size))
    with quiet():
        OnlyTraining(config, dataset, model.model).fit()


def whole_rows() -> Iterator[tuple[object, ...]]:
    for config in WHOLE_RUNS:
        run = planned(config)
        told, found = memory_of(run).peak / MEBI, peak_mebibytes(make_whole_run, config)
        yield row_of(run, told, found)


def row_of(run: Run, told: float, found: float) -> tuple[object, ...]:
    """Cells of a row; told and found are MiB."""
    config = run.config
    kind = "transcoder" if config.transcoder else "autoencoder"
    sizes = run.sizes.width, run.latents, config.batch_size, config.k
    figures = f"{told:.0f}", f"{found:.0f}", f"**{told / found:.2f}**"
    return config.host, config.architecture, kind, *sizes, *figures


COLUMNS = ("host", "architecture", "kind", "d_in", "latents", "tokens", "k")
MEASURED = ("planned, MiB", "measured, MiB", "planned / measured")

if __name__ == "__main__":
    print(machine())
    print_table("Training steps", (*COLUMNS, *MEASURED), step_rows())
    print_table("Whole runs", (*COLUMNS, *MEASURED), whole_rows())
