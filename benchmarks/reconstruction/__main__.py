"""Train and measure all cases, then write docs/reconstruction.md.

python -m benchmarks.reconstruction FOLDER [--seeds 3] [--only WORDS] [--main-site] [--write]

FOLDER takes the model and the activations. What benchmarks/reconstruction/results.jsonl has is not
run again; --write runs nothing and writes the document alone.
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
from pathlib import Path

import torch
from sae_lens import SAETransformerBridge
from tqdm import tqdm

from benchmarks.reconstruction.activations import (
    MAIN_SITE,
    SITES,
    Site,
    compute_missing,
    load,
    read_rows,
)
from benchmarks.reconstruction.cases import Case, cases_of
from benchmarks.reconstruction.document import write_document
from benchmarks.reconstruction.results import (
    PARTS,
    Figures,
    Result,
    append_result,
    find_results,
    read_results,
)
from benchmarks.reconstruction.training import in_pairs, train
from sae_binary_ext.demo.config import FIRST_POSITION
from sae_binary_ext.evaluation import CoderMetrics, SplicedModel, measure

SPLICED_ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run the cases whose names have these words")
    parser.add_argument(
        "--main-site", action="store_true", help="run autoencoders of layer 9 alone"
    )
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        sites = [MAIN_SITE] if arguments.main_site else SITES
        run_missing(arguments.folder, sites, arguments.seeds, arguments.only)
    write_document(read_results())


def run_missing(folder: Path, sites: list[Site], seeds: int, only: str) -> None:
    """Train and measure what there is no result of, the first seed of every case before others."""
    wanted = [
        (site, case, seed)
        for seed in range(seeds)
        for site in sites
        for case in cases_of(site)
        if only in case.name
    ]
    results = read_results()
    missing = [
        (site, case, seed)
        for site, case, seed in wanted
        if all(result.seed != seed for result in find_results(results, case, site))
    ]
    compute_missing(folder, sites)
    # A run for each core, of one thread each: two at once take 0.75 of the time of two in turn
    # with two threads. Started afresh, for a fork of a process with threads may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = pool.imap_unordered(functools.partial(run_case, folder), missing)
        for result in tqdm(runs, "Coders", len(missing)):
            append_result(result)


def run_case(folder: Path, run: tuple[Site, Case, int]) -> Result:
    """Train one coder, of a site, a case and a seed, and measure it."""
    site, case, seed = run
    split = load(folder, site)
    with tempfile.TemporaryDirectory() as saved:
        coder, seconds = train(case, site, split, seed, Path(saved))
    figures = {
        part: figures_of(case, measure(coder, *in_pairs(getattr(split, part), site)))
        for part in PARTS
    }
    return Result(
        kind=site.kind,
        layer=site.layer,
        case=case.name,
        settings=case.settings(),
        seed=seed,
        **figures,
        recovered=spliced_model(folder, site).losses(coder).recovered,
        seconds=seconds,
    )


def figures_of(case: Case, metrics: CoderMetrics) -> Figures:
    """The figures that are kept of a case's coder."""
    return Figures(
        fvu=metrics.fvu,
        l0=metrics.l0,
        dead=metrics.dead,
        dense=metrics.dense_10,
        entropy_bits=metrics.entropy_bits,
        bits=case.bits(metrics.entropy_bits, metrics.l0),
    )


# Cases of one site follow each other.
@functools.lru_cache(maxsize=1)
def spliced_model(folder: Path, site: Site) -> SplicedModel:
    """The model with the first held-out rows, to put a coder's output into."""
    model = SAETransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
    rows = read_rows(folder).held_out_articles[:SPLICED_ROWS]
    return SplicedModel(model, rows, *site.hooks, first_position=FIRST_POSITION)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
