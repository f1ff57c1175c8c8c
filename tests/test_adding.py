"""The diffs of CONTRIBUTING.md apply to a copy of the tree, and the copy passes its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_binary_ext.coding import SELECTIONS, SURROGATES

ROOT = Path(__file__).parents[1]
COPIED = ("sae_binary_ext", "tests", "docs/saelens.md", "pyproject.toml")
# For each addition, by its heading: a word in the names of its test cases.
ADDITIONS = {
    "Add a surrogate": "triangle",
    "Add a selection": "nearmax",
    "Add a SAELens architecture": "binary_l0",
    "Add a command": "sizes",
}
# Tests that each addition must pass.
CHECKS = (
    "tests/coding",
    "tests/saelens/test_any_architecture.py",
    "tests/saelens/test_autoencoder.py",
    "tests/saelens/test_surrogates.py",
    "tests/sparsify/test_coder.py",
    "tests/commands/test_sizes.py",
)


def diff_of(heading: str) -> str:
    """The diff in the section of CONTRIBUTING.md with this heading."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"^### {heading}\n.*?^```diff\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def apply(diff: str, root: Path) -> None:
    """Change the files of a tree. The text that a hunk replaces must occur once in its file."""
    for of_file in re.split(r"^\+\+\+ ", diff, flags=re.MULTILINE)[1:]:
        name, *hunks = re.split(r"\n@@\n", of_file)
        path = root / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.touch()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines if line[0] != "-")
            old = path.read_text()
            assert old.count(before) == 1 if before else not old, f"{name} lacks:\n{before}"
            path.write_text(old.replace(before, after) if before else after)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a copy of the tree with all additions."""
    root = tmp_path_factory.mktemp("changed")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, root / name)
    for heading in ADDITIONS:
        apply(diff_of(heading), root)
    return root


def run_in(root: Path, *arguments: str) -> str:
    """Run Python with the package of this tree; return the printed text."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.integration
def test_what_is_added_as_the_page_says_passes_the_shared_checks(changed: Path):
    words = " or ".join((*ADDITIONS.values(), "registered"))
    printed = run_in(changed, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", words, *CHECKS)
    passed = [line for line in printed.splitlines() if " PASSED" in line]
    for word in ADDITIONS.values():
        assert any(word in line for line in passed), word
    for host in ("saelens", "sparsify"):
        for word in ("triangle", "nearmax"):
            assert any(f"tests/{host}/" in line and word in line for line in passed), (host, word)


def test_an_added_command_is_listed(changed: Path):
    assert "sizes" in run_in(changed, "-m", "sae_binary_ext", "--help")
    assert "hookpoint" in run_in(changed, "-m", "sae_binary_ext", "sizes", "--help")


def test_the_documents_name_every_selection_and_surrogate():
    words = set(re.findall(r"\w+", (ROOT / "docs" / "saelens.md").read_text()))
    assert {*SELECTIONS, *SURROGATES} <= words
