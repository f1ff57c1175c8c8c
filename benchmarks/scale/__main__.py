"""Train and measure coders by the number of training tokens, then write docs/reconstruction.md.

python -m benchmarks.scale FOLDER [--search] [--kind autoencoder] [--layer 9] [--tokens 3000000]
    [--seed 0] [--only topk] [--jobs 2] [--again] [--write]

Text, model and activations are saved in FOLDER, 5.8 KB for each training token, and each coder in
FOLDER/coders. Runs whose figures are in benchmarks/scale/results.jsonl are not made again, so the
command can be stopped and started. --search makes the runs by which settings were chosen. --again
trains coders whose files are gone, and measures none. --write only writes the document.
"""

import argparse
import functools
import os
from pathlib import Path

from benchmarks.scale.cases import (
    AUTOENCODER,
    FAMILIES,
    PRICES,
    SEARCHED,
    Run,
    default_runs,
    search_runs,
    tuned_runs,
)
from benchmarks.scale.document import write_document
from benchmarks.scale.results import RESULTS, missing
from benchmarks.scale.running import compute_activations, make, one_thread, train_again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--search", action="store_true", help="make the search's runs alone")
    parser.add_argument("--kind", choices=FAMILIES, help="make the runs of these coders alone")
    parser.add_argument("--layer", type=int, help="make the runs of this layer alone")
    parser.add_argument("--tokens", type=int, help="make the runs of this many tokens alone")
    parser.add_argument("--seed", type=int, help="make the runs of this seed alone")
    parser.add_argument("--only", default="", help="make the runs whose names begin so")
    parser.add_argument(
        "--jobs", type=int, help="coders trained at once; as many as cores if left out"
    )
    again_help = "train coders whose files are gone, and measure none"
    parser.add_argument("--again", action="store_true", help=again_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        kinds = [kind for kind in FAMILIES if arguments.kind in (None, kind)]
        places = [place for place in PRICES if place.kind in kinds]
        of_search = [run for kind in kinds if kind in SEARCHED for run in search_runs(kind)]
        of_places = [run for place in places for run in tuned_runs(place)]
        of_places += default_runs() if AUTOENCODER in kinds else []
        wanted = [
            run
            for run in (of_search if arguments.search else of_places)
            if arguments.layer in (None, run.site.layer)
            and arguments.tokens in (None, run.tokens)
            and arguments.seed in (None, run.seed)
            and run.case.name.startswith(arguments.only)
        ]
        if arguments.again:
            train_again(arguments.folder, wanted, arguments.jobs)
        else:
            run_missing(arguments.folder, missing(wanted), arguments.jobs)
    write_document(RESULTS.read())


def run_missing(folder: Path, runs: list[Run], jobs: int | None) -> None:
    """Make runs, and append a line to the file of results for each."""
    compute_activations(folder, runs)
    # Each core trains one coder in one thread.
    RESULTS.make(functools.partial(make, folder), runs, "Coders", jobs, one_thread)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
