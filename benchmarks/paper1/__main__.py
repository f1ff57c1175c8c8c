"""Train and measure the grid of Quirke et al. on SmolLM2, then write docs/paper1.md.

python -m benchmarks.paper1 FOLDER [--layers 9 18] [--jobs 2] [--judge tokens] [--write]
    [--judge-url https://HOST/v1 --judge-model NAME]

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
from benchmarks.paper1.judging import DRAWN, JUDGED, Judge, judge_coders
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
    judge_help = "score latents by single tokens, or (with the extra delphi) by an embedding or a "
    judge_help += "language model"
    parser.add_argument("--judge", choices=DRAWN, help=judge_help)
    parser.add_argument("--judge-url", help="base URL of the language model's server")
    parser.add_argument("--judge-model", help="name of the language model")
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    server = arguments.judge_url, arguments.judge_model
    if any((arguments.judge == "model") == (given is None) for given in server):
        parser.error("give --judge model, --judge-url and --judge-model, or none of them")
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        layers = dict.fromkeys([SEARCH_LAYER, *arguments.layers])
        compute_missing(arguments.folder, [site(layer) for layer in layers])
        own = functools.partial(make, arguments.folder)
        RESULTS.make(own, missing(search_cases()), "Search", arguments.jobs, one_thread)
        left = missing(grid(list(arguments.layers), RESULTS.read()))
        RESULTS.make(own, left, "Coders", arguments.jobs, one_thread)
        if arguments.judge:
            judge = Judge(arguments.judge, *server)
            judge_coders(arguments.folder, arguments.layers, judge)
    write_document(RESULTS.read())
    write_scores(JUDGED.read())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
