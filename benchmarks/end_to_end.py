"""Where the time of a whole training run goes, in both hosts and in TranscoderTrainingRunner.

Usage: python -m benchmarks.end_to_end [--tokens 16384]
       python -m benchmarks.end_to_end --readers CODER [CODER ...] [--tokens 8192]

Each run trains one coder on SmolLM2 and the embedded articles, from the first text to the saved
file. The time is split by wrapping public methods of the hosts; nothing in the package is
instrumented. With --readers, the commands that read text are timed instead (benchmarks.readers).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETransformerBridge,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from sparsify.data import chunk_and_tokenize
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks import readers
from benchmarks.hosts import quiet
from benchmarks.measure import machine, print_table
from benchmarks.parts_of_time import REST, PartsOfTime
from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
    TranscoderTrainingRunner,
)
from sae_binary_ext.saelens.splice import resolve_hook
from sae_binary_ext.settings import FLOAT32
from sae_binary_ext.sparsify import BinarySparseCoderConfig

TOKENISING, MODEL, STORE = "tokenising", "model forward", "store, shuffle"
STEP, SAVING = "coder step", "saving"
PARTS = (TOKENISING, MODEL, STORE, STEP, SAVING, REST)
# The model and the text would take as long with any coder.
NOT_OURS = (TOKENISING, MODEL, STORE)
ROWS_PER_FORWARD = 8


@dataclass(frozen=True)
class Size:
    """The size of a run: tokens to train on, in a step and in a row; the layer; the coder."""

    tokens: int = 16_384
    batch: int = 2048
    context: int = 128
    layer: int = 9
    width: int = 576
    latents: int = 4608
    k: int = 32


@dataclass(frozen=True)
class Timed:
    """A run by its name, with its tokens and the seconds of each part."""

    name: str
    tokens: int
    seconds: dict[str, float]

    @property
    def whole(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def ours(self) -> float:
        """Share of the coder's step, of saving, and of all that no other part has."""
        return 1 - sum(self.seconds.get(part, 0.0) for part in NOT_OURS) / self.whole

    def cells(self) -> tuple[str, ...]:
        """Cells of the table."""
        shares = (self.seconds.get(part, 0.0) / self.whole for part in PARTS)
        rate = f"{self.tokens / self.whole:,.0f}"
        own = (f"{share:.1%}" for share in shares)
        return self.name, f"{self.whole:.1f}", rate, *own, f"**{self.ours:.1%}**"


COLUMNS = (
    "run",
    "whole run, s",
    "tokens/s",
    *PARTS,
    "coder and all else that is not model or text",
)


def timed(
    name: str, tokens: int, run: Callable[[PartsOfTime], object], clock: Callable[[], float]
) -> Timed:
    """Run a function that counts its parts; all other time is the rest."""
    parts = PartsOfTime(clock)
    with quiet(), parts.part(REST):
        run(parts)
    return Timed(name, tokens, dict(parts.seconds))


def settings_of_runner(size: Size, text: Path, out: Path) -> dict[str, Any]:
    """Settings that both of SAELens' kinds of runners take. The buffer holds two steps."""
    return {
        "model_name": "unused",
        "dataset_path": str(text),
        "streaming": False,
        "context_size": size.context,
        "seqpos_slice": (1, None),
        "lr": 3e-3,
        "train_batch_size_tokens": size.batch,
        "training_tokens": size.tokens,
        "store_batch_size_prompts": ROWS_PER_FORWARD,
        "n_batches_in_buffer": 2 * size.batch // size.context,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": str(out),
    }


def run_saelens(
    sae: Any, size: Size, model: Any, text: Path, out: Path, parts: PartsOfTime
) -> None:
    """Train with SAELens' runner on the residual stream that enters the layer."""
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        hook_name=resolve_hook(model, "hook_name", f"blocks.{size.layer}.hook_resid_pre"),
        is_dataset_tokenized=False,
        verbose=False,
        **settings_of_runner(size, text, out),
    )
    runner = LanguageModelSAETrainingRunner(config, override_model=model)
    with (
        parts.wrapped(TOKENISING, (ActivationsStore, "get_batch_tokens")),
        parts.wrapped(MODEL, (ActivationsStore, "get_activations")),
        parts.wrapped(STORE, (ActivationsStore, "__next__")),
        parts.wrapped(STEP, (SAETrainer, "step")),
        parts.wrapped(SAVING, (LanguageModelSAETrainingRunner, "save_final_sae")),
    ):
        runner.run()


def run_transcoders(
    sae: Any, size: Size, model: Any, text: Path, out: Path, parts: PartsOfTime
) -> None:
    """Train with TranscoderTrainingRunner on the inputs and outputs of the layer's MLP."""
    config = TranscoderRunnerConfig(
        saes={"coder": sae},
        hook_name=f"blocks.{size.layer}.mlp.hook_in",
        hook_name_out=f"blocks.{size.layer}.hook_mlp_out",
        **settings_of_runner(size, text, out),
    )
    runner = TranscoderTrainingRunner(config, override_model=model)
    load = ActivationsStore.get_multi_hook_data_loader

    def counted(store: ActivationsStore) -> Iterator[dict[str, Tensor]]:
        return parts.iterating(STORE, load(store))

    ActivationsStore.get_multi_hook_data_loader = counted
    try:
        with (
            parts.wrapped(TOKENISING, (ActivationsStore, "get_batch_tokens")),
            parts.wrapped(MODEL, (ActivationsStore, "get_multi_hook_activations")),
            parts.wrapped(STEP, (SAETrainer, "step")),
            parts.wrapped(SAVING, (TrainingSAE, "save_inference_model")),
        ):
            runner.run()
    finally:
        ActivationsStore.get_multi_hook_data_loader = load


def run_sparsify(
    sae: SparseCoderConfig,
    size: Size,
    model: Any,
    tokenizer: Any,
    texts: list[str],
    out: Path,
    parts: PartsOfTime,
) -> None:
    """Train with sparsify's Trainer on the output of the layer before.

    The coder's forward and backward pass run within the model's forward pass, and do not count for
    it. The Trainer runs all layers of the model.
    """
    with parts.part(TOKENISING):
        rows = chunk_and_tokenize(
            Dataset.from_dict({"text": texts}),
            tokenizer,
            num_proc=1,
            max_seq_len=size.context,
            load_from_cache_file=False,
        )
    rows = rows.select(range(size.tokens // size.context))
    config = TrainConfig(
        sae,
        batch_size=size.batch // size.context,
        hookpoints=[f"layers.{size.layer - 1}"],
        log_to_wandb=False,
        save_dir=str(out),
    )
    trainer = Trainer(config, rows, model)
    steps = [(optimiser, "step") for optimiser in trainer.optimizers]
    (kind,) = {type(coder) for coder in trainer.saes.values()}
    with (
        parts.wrapped(MODEL, (model, "forward")),
        parts.wrapped(STEP, (kind, "forward"), (Tensor, "backward"), *steps),
        parts.wrapped(SAVING, (Trainer, "save")),
    ):
        trainer.fit()


def runs(
    size: Size, folder: Path, out: Path, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Timed]:
    """All runs, hosts' stock coders first. `folder` has the model; files of runs go to `out`."""
    texts = articles(size)
    text = out / "text"
    text.mkdir()
    Dataset.from_dict({"text": texts}).to_parquet(text / "train.parquet")
    model = SAETransformerBridge.boot_transformers(str(folder), device="cpu")
    model.run_with_cache(torch.zeros(ROWS_PER_FORWARD, size.context, dtype=torch.int64))
    shared: dict[str, Any] = {"d_in": size.width, "d_sae": size.latents}
    in_saelens = {
        "SAELens, stock topk": TopKTrainingSAEConfig(**shared, k=size.k),
        "SAELens, binary": BinaryTrainingSAEConfig(**shared, k=size.k),
        "SAELens, binary_entropy": BinaryEntropyTrainingSAEConfig(**shared),
    }
    for name, sae in in_saelens.items():
        run = partial(run_saelens, sae, size, model, text, out / "sae")
        yield timed(name, size.tokens, run, clock)
    of_mlp = {
        "transcoders, topk_transcoder": TopKTranscoderTrainingSAEConfig(**shared, k=size.k),
        "transcoders, binary_transcoder": BinaryTranscoderTrainingSAEConfig(**shared, k=size.k),
    }
    for name, sae in of_mlp.items():
        run = partial(run_transcoders, sae, size, model, text, out / "transcoders")
        yield timed(name, size.tokens, run, clock)
    host = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    own = {"num_latents": size.latents, "k": size.k}
    in_sparsify = {
        "sparsify, stock topk": SparseCoderConfig(**own),
        "sparsify, topk_binary": BinarySparseCoderConfig(activation="topk_binary", **own),
    }
    for name, sae in in_sparsify.items():
        run = partial(run_sparsify, sae, size, *host, texts, out)
        yield timed(name, size.tokens, run, clock)


def articles(size: Size) -> list[str]:
    """Articles of the embedded sample, enough for twice the tokens of a run."""
    found: list[str] = []
    # A token has at least two characters on average, in this sample more than four.
    for _, text in read_wikipedia_sample():
        found.append(text)
        if sum(map(len, found)) > 2 * 5 * size.tokens:
            break
    return found


def in_words(size: Size) -> str:
    """The size, for the heading of a table."""
    return (
        f"{size.tokens:,} tokens, {size.batch} in a step, rows of {size.context}, layer "
        f"{size.layer}, {size.latents} latents, k = {size.k}"
    )


def rows_of(found: Iterable[Timed]) -> Iterator[tuple[str, ...]]:
    """Rows of the table, as runs end."""
    return (each.cells() for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, help="tokens of each run, or of each reader")
    parser.add_argument(
        "--readers", metavar="CODER", nargs="+", help="time readers of these coders"
    )
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="count the processor's seconds: for one thread, beside other work",
    )
    parser.add_argument("--precision", default=FLOAT32, help="of readers, as the commands have it")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    given = {} if options.tokens is None else {"tokens": options.tokens}
    print(machine())
    if options.readers is not None:
        readers.print_readers(options.readers, clock, precision=options.precision, **given)
        return
    size = Size(**given)
    with tempfile.TemporaryDirectory() as out:
        found = runs(size, export_smollm2(Path(out) / "model"), Path(out), clock)
        print_table(f"Whole runs: {in_words(size)}", COLUMNS, rows_of(found))


if __name__ == "__main__":
    main()
