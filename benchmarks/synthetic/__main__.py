"""Train coders on synthetic data with known features, then write docs/synthetic.md.

python -m benchmarks.synthetic [--jobs 2] [--write]

Runs whose figures are in benchmarks/synthetic/results.jsonl are not made again, so the command can
be stopped and started. --write only writes the document.
"""

import argparse

from benchmarks.synthetic.document import write_document
from benchmarks.synthetic.results import RESULTS, missing, search_runs, tuned_runs
from benchmarks.synthetic.running import make, one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    jobs_help = "coders trained at once; as many as cores if left out"
    parser.add_argument("--jobs", type=int, help=jobs_help)
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        RESULTS.make(make, missing(search_runs()), "Search", arguments.jobs, one_thread)
        left = missing(tuned_runs(RESULTS.read()))
        RESULTS.make(make, left, "Coders", arguments.jobs, one_thread)
    write_document(RESULTS.read())


if __name__ == "__main__":
    main()
