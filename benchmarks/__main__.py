"""Print all tables of speed and memory: python -m benchmarks, or make bench."""

from benchmarks import covariance, inference, paths, screening, steps
from benchmarks.measure import machine


def main() -> None:
    print(machine())
    for benchmark in (steps, paths, screening, covariance, inference):
        benchmark.main()


if __name__ == "__main__":
    main()
