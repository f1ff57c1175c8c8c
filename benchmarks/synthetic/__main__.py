"""Train coders on synthetic data with known features, then write docs/synthetic.md.

python -m benchmarks.synthetic [--jobs 2] [--write]

Runs whose figures are in benchmarks/synthetic/results.jsonl are not made again, so the command can
be stopped and started. --write only writes the document.
"""

import argparse
import multiprocessing

from tqdm import tqdm

from benchmarks.synthetic.document import write_document
from benchmarks.synthetic.results import append_line, missing, read_lines, search_runs, tuned_runs
from benchmarks.synthetic.running import Run, make, one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    jobs_help = "coders trained at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        run_missing(search_runs(), "Search", arguments.jobs)
        run_missing(tuned_runs(read_lines()), "Coders", arguments.jobs)
    write_document(read_lines())


def run_missing(runs: list[Run], description: str, jobs: int | None) -> None:
    """Make the runs that have no result, and append a line to the file of results for each."""
    left = missing(runs)
    # Processes are spawned, because a fork of a process with threads may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(jobs, initializer=one_thread) as pool:
        for line in tqdm(pool.imap_unordered(make, left), description, len(left)):
            append_line(line)


if __name__ == "__main__":
    main()
