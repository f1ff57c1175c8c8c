"""Every table of speed and memory: python -m benchmarks, or make bench."""

from benchmarks import covariance, inference, paths, steps
from benchmarks.measure import machine


def main() -> None:
    print(machine())
    for benchmark in (steps, paths, covariance, inference):
        benchmark.main()


if __name__ == "__main__":
    main()
