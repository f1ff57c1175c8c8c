"""Train and measure all cases, then write docs/short-training.md.

python -m benchmarks.reconstruction FOLDER [--seeds 3] [--only WORDS] [--main-site] [--jobs 2]
    [--write]

The model and the activations are saved in FOLDER. Cases whose results are in
benchmarks/reconstruction/results.jsonl are not run again. --write only writes the document.
"""

import argparse
import functools
import multiprocessing
import os
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.reconstruction.activations import MAIN_SITE, SITES, Site, compute_missing
from benchmarks.reconstruction.cases import cases_of
from benchmarks.reconstruction.document import write_document
from benchmarks.reconstruction.results import append_result, find_results, read_results
from benchmarks.reconstruction.running import run_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run the cases whose names have these words")
    parser.add_argument(
        "--main-site", action="store_true", help="run autoencoders of layer 9 alone"
    )
    parser.add_argument(
        "--jobs", type=int, help="coders trained at once; as many as cores if left out"
    )
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        sites = [MAIN_SITE] if arguments.main_site else SITES
        run_missing(arguments.folder, sites, arguments.seeds, arguments.only, arguments.jobs)
    write_document(read_results())


def run_missing(
    folder: Path, sites: list[Site], seeds: int, only: str, jobs: int | None = None
) -> None:
    """Train and measure each case without a result: all cases with seed 0, then with seed 1, ..."""
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
    # Each core runs one case in one thread: two cases at once take 0.75 of the time of two in turn
    # with two threads. Processes are spawned, because a fork of a process with threads may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = pool.imap_unordered(functools.partial(run_case, folder), missing)
        for result in tqdm(runs, "Coders", len(missing)):
            append_result(result)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
