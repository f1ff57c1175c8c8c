"""The formats that coders come in, in one table. A new one is a module and a line."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sae_binary_ext.checkpoints import cho2025, quirke2025, saelens, sparsify
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.portable import PortableCoder


@dataclass(frozen=True)
class Format:
    """How coders are written down.

    Attributes:
        config, weights: the two files of a coder's folder.
        read: the coder of a folder; raises CheckpointError.
        write: into a folder; raises CheckpointError where the format cannot tell the coder.
        named_by_folder: a coder's folder is named by its hookpoint.
        other_config, other_weights: the two files as the format's own code names them where it
            does not do as this package does, as patterns of fnmatch.
    """

    config: str
    weights: str
    read: Callable[[Path], PortableCoder]
    write: Callable[[PortableCoder, Path], None]
    named_by_folder: bool = False
    other_config: str | None = None
    other_weights: str | None = None

    def weights_names(self) -> tuple[str, ...]:
        """Patterns of the files that hold such a coder's weights."""
        return (self.weights,) if self.other_weights is None else (self.weights, self.other_weights)

    def is_weights(self, name: str) -> bool:
        """Whether a file of this name holds such a coder's weights."""
        return any(fnmatchcase(name, pattern) for pattern in self.weights_names())


FORMATS = {
    "saelens": Format("cfg.json", saelens.WEIGHTS, saelens.read, saelens.write),
    "sparsify": Format("cfg.json", sparsify.WEIGHTS, sparsify.read, sparsify.write, True),
    "quirke2025": Format("cfg.json", sparsify.WEIGHTS, sparsify.read, quirke2025.write, True),
    "cho2025": Format(
        cho2025.CONFIG,
        cho2025.WEIGHTS,
        cho2025.read,
        cho2025.write,
        other_config=cho2025.REPORT_CONFIG,
        other_weights=cho2025.REPORT_WEIGHTS,
    ),
}
# Patterns of fnmatch, most of which are plain names.
WEIGHTS = sorted({name for form in FORMATS.values() for name in form.weights_names()})
CONFIGS = {name for form in FORMATS.values() for name in (form.config, form.other_config) if name}
CODER_FILES = sorted({*WEIGHTS, *CONFIGS})


def format_of(folder: Path) -> str | None:
    """The name of the format of a folder's coder; None where the folder holds none.

    Raises:
        CheckpointError: a coder's weights are missing, or there are those of several formats.
    """
    files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    names = [name for name, form in FORMATS.items() if any(map(form.is_weights, files))]
    if names == ["sparsify", "quirke2025"]:
        config = folder / "cfg.json"
        papers = config.is_file() and sparsify.is_papers(read_json(config))
        return "quirke2025" if papers else "sparsify"
    if len(names) > 1:
        raise CheckpointError(f"{folder}: holds weights of several formats, {names}.")
    if not names and any((folder / form.config).is_file() for form in FORMATS.values()):
        raise CheckpointError(f"{folder}: has a config and no weights, none of {WEIGHTS}.")
    return names[0] if names else None
