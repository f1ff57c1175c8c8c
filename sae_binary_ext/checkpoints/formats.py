"""The table of formats that coders are stored in. A new format is a module and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sae_binary_ext.checkpoints import cho2025, saelens, sparsify
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.portable import PortableCoder


@dataclass(frozen=True)
class Format:
    """A format of coders: the names of its two files, and functions that read and write a folder.

    The other names are fnmatch patterns of names that the format's own code writes.
    named_by_folder: the name of a coder's folder is its hookpoint.
    """

    config: str
    weights: str
    read: Callable[[Path], PortableCoder]
    write: Callable[[PortableCoder, Path], None]
    named_by_folder: bool = False
    other_config: str | None = None
    other_weights: str | None = None

    def is_weights(self, name: str) -> bool:
        """Whether a file of this name holds weights in this format."""
        return any(fnmatchcase(name, one) for one in (self.weights, self.other_weights) if one)


FORMATS = {
    "saelens": Format("cfg.json", saelens.WEIGHTS, saelens.read, saelens.write),
    "sparsify": Format("cfg.json", sparsify.WEIGHTS, sparsify.read, sparsify.write, True),
    "quirke2025": Format(
        "cfg.json", sparsify.WEIGHTS, sparsify.read, sparsify.write_quirke2025, True
    ),
    "cho2025": Format(
        cho2025.CONFIG, cho2025.WEIGHTS, cho2025.read, cho2025.write,
        other_config=cho2025.REPORT_CONFIG, other_weights=cho2025.REPORT_WEIGHTS,
    ),
}  # fmt: skip
_CONFIGS = {name for form in FORMATS.values() for name in (form.config, form.other_config) if name}
# Names of files, and fnmatch patterns of names.
WEIGHTS = sorted(
    {name for form in FORMATS.values() for name in (form.weights, form.other_weights) if name}
)
CODER_FILES = sorted([*WEIGHTS, *_CONFIGS])


def format_of(folder: Path) -> str | None:
    """The format of a folder's coder, or None if it holds no coder.

    CheckpointError if it has a config without weights, or the weights of several formats.
    """
    files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    names = [name for name, form in FORMATS.items() if any(map(form.is_weights, files))]
    if names == ["sparsify", "quirke2025"]:
        papers = "cfg.json" in files and sparsify.is_papers(read_json(folder / "cfg.json"))
        return "quirke2025" if papers else "sparsify"
    if len(names) > 1:
        raise CheckpointError(f"{folder}: holds weights of several formats, {names}. Keep one.")
    if not names and any(form.config in files for form in FORMATS.values()):
        raise CheckpointError(f"{folder}: has a config but no weights; expected one of {WEIGHTS}.")
    return names[0] if names else None
