"""Train and measure the grid of Quirke et al. on SmolLM2, then write docs/paper1.md.

python -m benchmarks.paper1 FOLDER [--layers 9 18] [--jobs 2] [--judge tokens] [--write]

The model and the activations are saved in FOLDER, 1 GB for each layer, and each trained coder in
FOLDER/coders. Coders whose figures are in benchmarks/paper1/results.jsonl are not trained again, so
the command can be stopped and started. With --judge, a judge then scores the latents of the coders
of seed 0, and latents are silenced in the order of their scores. --write only writes the document.
"""

import argparse
import functools
import os
from pathlib import Path

from benchmarks.paper1.cases import LAYERS, SEARCH_LAYER, site
from benchmarks.paper1.document import write_document
from benchmarks.paper1.judging import JUDGED, JUDGES, judge_coders
from benchmarks.paper1.results import RESULTS, grid, missing, search_cases
from benchmarks.paper1.running import make, one_thread
from benchmarks.paper1.scores_document import write_scores
from benchmarks.reconstruction.activations import compute_missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="the MLPs' layers")
    jobs_help = "coders trained at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    judge_help = "score latents by single tokens, or by an embedding (needs the extra delphi)"
    parser.add_argument("--judge", choices=JUDGES, help=judge_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        layers = dict.fromkeys([SEARCH_LAYER, *arguments.layers])
        compute_missing(arguments.folder, [site(layer) for layer in layers])
        own = functools.partial(make, arguments.folder)
        RESULTS.make(own, missing(search_cases()), "Search", arguments.jobs, one_thread)
        left = missing(grid(list(arguments.layers), RESULTS.read()))
        RESULTS.make(own, left, "Coders", arguments.jobs, one_thread)
        if arguments.judge:
            judge_coders(arguments.folder, arguments.layers, arguments.judge)
    write_document(RESULTS.read())
    write_scores(JUDGED.read())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
