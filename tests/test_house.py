"""The tree follows CONTRIBUTING.md: imports point downwards, and a file's name identifies it."""

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sae_binary_ext"
# Each module may import modules on its own line and on earlier lines.
FLOORS = (
    ("checks", "settings", "saving", "registration"),
    ("coding.kernels",),
    ("coding",),
    ("coding.forms",),
    ("training",),
    ("saelens", "sparsify"),
    ("checkpoints",),
    ("bundled",),
    ("measure",),
    ("circuits", "steering"),
    ("report",),
    ("commands",),
    ("cli", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400


def floor_of(module: str) -> int | None:
    """Floor of a module, given by its dotted name in the package. The package itself has None."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (room := ".".join(parts[:length])) in FLOOR:
            return FLOOR[room]
    return None


def imported_by(path: Path) -> set[str]:
    """Modules of the package that a file imports, by their dotted names in the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        prefix = "sae_binary_ext."
        found |= {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path):
    own = floor_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if own is None:
        return
    upwards = {name for name in imported_by(path) if (floor_of(name) or 0) > own}
    assert not upwards


def test_a_file_s_name_tells_which_it_is():
    names = Counter(path.name for path in MODULES)
    shared = {"__init__.py", "register.py", "config.py"}
    assert [name for name, times in names.items() if times > 1 and name not in shared] == []


def test_files_are_read_in_one_sitting():
    assert [path.name for path in MODULES if len(path.read_text().splitlines()) > LONGEST] == []


def test_the_papers_mathematics_is_short():
    lines = sum(len(path.read_text().splitlines()) for path in (PACKAGE / "coding").glob("*.py"))
    assert lines <= 1500
