"""Reads code blocks and command lines from the documents that users copy from."""

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
    """A block of Python in a document.

    Attributes:
        document: path of the file, relative to the top level.
        heading: heading of the section that holds the block.
        code: text of the block.
    """

    document: str
    heading: str
    code: str


def name_of(path: Path) -> str:
    """The path of a file, relative to the top level."""
    return path.relative_to(ROOT).as_posix()


def python_blocks() -> list[Block]:
    """All blocks of Python in all documents, in order."""
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
    """The document and the command of each indented line that calls sae-binary or make."""
    lines = [(name_of(path), line) for path in DOCUMENTS for line in path.read_text().splitlines()]
    commands = [(name, line.split("  #")[0].strip()) for name, line in lines if line[:4] == " " * 4]
    return [(name, line) for name, line in commands if re.match(r"(sae-binary|make) ", line)]
