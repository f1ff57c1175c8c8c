"""Fine-tune coders of four MLP outputs of SmolLM2 together, then write docs/finetune.md.

python -m benchmarks.finetuning FOLDER [--jobs 2] [--write]

The coders of each kind are trained one by one in SAELens' trainer, and then tuned together by
`sae-binary finetune`. The model, activations, coders and unfinished runs are saved in FOLDER. Runs
whose figures are in benchmarks/finetuning/results.jsonl are not made again, so the command can be
stopped and started. --write only writes the document.
"""

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.finetuning.coders import KINDS, train_missing
from benchmarks.finetuning.document import write_document
from benchmarks.finetuning.results import RESULTS, final_run, line_of, search_runs
from benchmarks.finetuning.running import Run, make
from benchmarks.synthetic.running import one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    jobs_help = "runs made at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        make_missing(arguments.folder, search_runs(), "Search", arguments.jobs)
        lines = RESULTS.read()
        final = [run for kind in KINDS if (run := final_run(kind, lines)) is not None]
        make_missing(arguments.folder, final, "Runs", arguments.jobs)
    write_document(RESULTS.read())


def make_missing(folder: Path, runs: Sequence[Run], description: str, jobs: int | None) -> None:
    """Make the runs that have no result, and append a line to the file of results for each."""
    lines = RESULTS.read()
    left = [run for run in runs if line_of(run, lines) is None]
    for kind in dict.fromkeys(run.kind for run in left):
        train_missing(folder, kind)
    RESULTS.make(functools.partial(make, folder), left, description, jobs, one_thread)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
