"""Prints the tables of speed and memory: python -m benchmarks [--full], or make bench."""

from benchmarks import busy, covariance, inference, paths, screening, steps
from benchmarks.measure import asks_for_all, machine


def main() -> None:
    full = asks_for_all()
    print(machine())
    for of_each_k in (steps, paths):
        of_each_k.main(full=full)
    for benchmark in (busy, screening, covariance, inference):
        benchmark.main()


if __name__ == "__main__":
    main()
