"""Code blocks and command lines of the documents that users copy from."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        document: the file, as seen from the top level.
        heading: of the section that it stands in.
        code: what it holds.
    """

    document: str
    heading: str
    code: str


def name_of(path: Path) -> str:
    """As seen from the top level."""
    return path.relative_to(ROOT).as_posix()


def python_blocks() -> list[Block]:
    """All of all documents, in order."""
    blocks: list[Block] = []
    for path in DOCUMENTS:
        heading = ""
        parts = re.split(r"^(#+ .*|```python\n(?s:.*?)^```)$", path.read_text(), flags=re.MULTILINE)
        for part in parts:
            if part.startswith("#"):
                heading = part.lstrip("# ")
            elif part.startswith("```python\n"):
                code = part.removeprefix("```python\n").removesuffix("```")
                blocks.append(Block(name_of(path), heading, code))
    return blocks


def command_lines() -> list[tuple[str, str]]:
    """Document and command of all indented lines that call sae-binary or make."""
    lines = [(name_of(path), line) for path in DOCUMENTS for line in path.read_text().splitlines()]
    commands = [(name, line.split("  #")[0].strip()) for name, line in lines if line[:4] == " " * 4]
    return [(name, line) for name, line in commands if re.match(r"(sae-binary|make) ", line)]
