"""Trains and measures one coder of the comparison, in a process of its own."""

import functools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETransformerBridge
from sae_lens.saes.sae import SAEMetadata

from benchmarks.reconstruction.activations import Site, Split
from benchmarks.reconstruction.running import figures_of
from benchmarks.reconstruction.training import in_pairs, train
from benchmarks.result_lines import made
from benchmarks.scale.activations import compute_missing, load
from benchmarks.scale.cases import Run
from benchmarks.scale.corpus import ROW, read_rows
from sae_binary_ext.bundled.smollm2 import MODEL_NAME
from sae_binary_ext.commands.demo.config import FIRST_POSITION
from sae_binary_ext.measure import SplicedModel, measure, value_bits
from sae_binary_ext.saving import replacing

SPLICED_ROWS = 16
VALUE_TOKENS = 10_000


def one_thread() -> None:
    """Prepare a process that trains coders: one thread, and products of matrices in bfloat16.

    oneDNN makes products of float32 in bfloat16 on processors with AMX. Hosts' own coders and
    binary coders are treated alike, and all are measured in float32.
    """
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")


def compute_activations(folder: Path, runs: list[Run]) -> None:
    """Compute what activations the runs need and FOLDER lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {
        site: max(run.tokens for run in runs if run.site == site)
        for site in dict.fromkeys(run.site for run in runs)
    }
    compute_missing(folder, tokens)


def make(folder: Path, run: Run) -> dict[str, Any]:
    """Train and measure one coder; a line of the file of results.

    bits counts 8 bits a value. mdl_bits counts the values' entropy once they are quantised (see
    sae_binary_ext.measure.value_bits).
    """
    split = load(folder, run.site, run.tokens)
    coder, seconds = train_and_save(folder, run, split)
    torch.set_float32_matmul_precision("highest")
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    for part in ("choosing", "held_out"):
        inputs, targets = in_pairs(getattr(split, part), run.site)
        figures[part] = asdict(figures_of(run.case, measure(coder, inputs, targets)))
        values = value_bits(coder, inputs[:VALUE_TOKENS], targets[:VALUE_TOKENS])
        figures[part]["mdl_bits"] = figures[part]["entropy_bits"] + values
    figures["recovered"] = spliced_model(folder, run.site).losses(coder).recovered
    one_thread()
    return {
        "case": run.case.name,
        **run.key(),
        **figures,
        "seconds": round(seconds),
        "measuring_seconds": round(time.perf_counter() - started),
    }


def train_again(folder: Path, runs: list[Run], jobs: int | None) -> None:
    """Train the coders of runs that have no file."""
    runs = [run for run in runs if not folder_of(folder, run).is_dir()]
    compute_activations(folder, runs)
    for saved in made(functools.partial(make_again, folder), runs, "Coders", jobs, one_thread):
        print(saved)


def make_again(folder: Path, run: Run) -> Path:
    """Train a coder whose file is gone, without measuring it; the file's folder."""
    saved = folder_of(folder, run)
    if not saved.is_dir():
        train_and_save(folder, run, load(folder, run.site, run.tokens))
    return saved


def folder_of(folder: Path, run: Run) -> Path:
    """The folder of a run's coder."""
    case, site = run.case, run.site
    kind = "skip_transcoder" if case.fields.get("skip_connection") else site.kind
    settings = f"{case.name.replace(', ', '_')}_lr{case.lr:g}_batch{case.batch_size}"
    # The search has another coefficient than the comparison.
    if (dense := case.fields.get("dense_coefficient")) is not None:
        settings += f"_dense{dense:g}"
    return folder / "coders" / f"{kind}_{site.layer}_{settings}_{run.tokens}_seed{run.seed}"


def train_and_save(folder: Path, run: Run, split: Split) -> tuple[SAE[Any], float]:
    """Train a coder and save it, as it is measured; the coder, and the seconds of training.

    The file names the model and its hooks, so that the package's commands read it as it is.
    """
    with tempfile.TemporaryDirectory() as unfinished:
        coder, seconds = train(run.case, run.site, split, run.seed, Path(unfinished), epochs=1)
    source, target = run.site.hooks
    coder.cfg.metadata = SAEMetadata(
        model_name=MODEL_NAME,
        hook_name=source,
        context_size=ROW,
        prepend_bos=True,
        seqpos_slice=(FIRST_POSITION, None),
        **({} if source == target else {"hook_name_out": target}),
    )
    with replacing(folder_of(folder, run)) as new:
        coder.save_model(new)
    return coder, seconds


# A cache of one entry is enough, because runs of one site follow one another.
@functools.lru_cache(maxsize=1)
def spliced_model(folder: Path, site: Site) -> SplicedModel:
    """The model and the first held-out rows, on which a coder's output replaces activations."""
    model = SAETransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
    rows = read_rows(folder).held_out[:SPLICED_ROWS].long()
    return SplicedModel(model, rows, *site.hooks, first_position=FIRST_POSITION)
