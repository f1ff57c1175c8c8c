"""Train and measure the grid of Quirke et al. on SmolLM2, then write docs/paper1.md.

python -m benchmarks.paper1 FOLDER [--layers 9 18] [--jobs 2] [--write]

The model and the activations are saved in FOLDER, 1 GB for each layer, and each trained
coder in FOLDER/coders. Coders whose figures are in
benchmarks/paper1/results.jsonl are not trained again, so the command can be stopped and started.
--write only writes the document.
"""

import argparse
import functools
import multiprocessing
import os
from pathlib import Path

from tqdm import tqdm

from benchmarks.paper1.cases import LAYERS, SEARCH_LAYER, Case, site
from benchmarks.paper1.document import write_document
from benchmarks.paper1.results import append_line, grid, missing, read_lines, search_cases
from benchmarks.paper1.running import make, one_thread
from benchmarks.reconstruction.activations import compute_missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="the MLPs' layers")
    jobs_help = "coders trained at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        layers = dict.fromkeys([SEARCH_LAYER, *arguments.layers])
        compute_missing(arguments.folder, [site(layer) for layer in layers])
        run_missing(arguments.folder, search_cases(), "Search", arguments.jobs)
        cases = grid(list(arguments.layers), read_lines())
        run_missing(arguments.folder, cases, "Coders", arguments.jobs)
    write_document(read_lines())


def run_missing(folder: Path, cases: list[Case], description: str, jobs: int | None) -> None:
    """Train the cases that have no result, and append a line to the file of results for each."""
    left = missing(cases)
    # Processes are spawned, because a fork of a process with threads may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(jobs, initializer=one_thread) as pool:
        made = pool.imap_unordered(functools.partial(make, folder), left)
        for line in tqdm(made, description, len(left)):
            append_line(line)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
