"""Runs of a benchmark are made in processes of their own, which must find what makes a run."""

import subprocess
import sys
from pathlib import Path

from benchmarks.result_lines import ResultsFile

MAKE = "def make(settings, run):\n    return {'run': settings + run}\n"
MAIN = """
import functools
from pathlib import Path
from benchmarks.result_lines import ResultsFile
if __name__ == "__main__":
    file = ResultsFile(Path("results.jsonl"))
    file.make(functools.partial(make, 10), [1, 2], "Runs", 1, print)
"""


def run_package(folder: Path, main: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m package` in a folder, where the package has this main module."""
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "running.py").write_text(MAKE)
    (package / "__main__.py").write_text(main)
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "package"],
        cwd=folder,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_package_makes_runs_with_a_function_of_another_module(tmp_path: Path):
    done = run_package(tmp_path, "from package.running import make\n" + MAIN)
    assert done.returncode == 0, done.stderr
    assert ResultsFile(tmp_path / "results.jsonl").read() == [{"run": 11}, {"run": 12}]


def test_a_function_of_the_main_module_is_refused(tmp_path: Path):
    done = run_package(tmp_path, MAKE + MAIN)
    assert done.returncode == 1
    assert "make is a function of package.__main__" in done.stderr
    assert "Move it to another module" in done.stderr
