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
    """A format of coders.

    Attributes:
        config, weights: names of the two files in a coder's folder.
        read: reads the coder of a folder, or raises CheckpointError.
        write: writes a coder into a folder. Raises CheckpointError if the format cannot store it.
        named_by_folder: the name of a coder's folder is its hookpoint.
        other_config, other_weights: other names that the format's own code gives the two files,
            as fnmatch patterns.
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
        cho2025.CONFIG,
        cho2025.WEIGHTS,
        cho2025.read,
        cho2025.write,
        other_config=cho2025.REPORT_CONFIG,
        other_weights=cho2025.REPORT_WEIGHTS,
    ),
}


def _names(*attributes: str) -> list[str]:
    names = {getattr(form, one) for form in FORMATS.values() for one in attributes}
    return sorted(names - {None})


# fnmatch patterns. Most are plain names.
WEIGHTS = _names("weights", "other_weights")
CODER_FILES = sorted([*WEIGHTS, *_names("config", "other_config")])


def format_of(folder: Path) -> str | None:
    """The name of the format of a folder's coder. None if the folder holds no coder.

    Raises:
        CheckpointError: the weights are missing, or there are weights of several formats.
    """
    files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    names = [name for name, form in FORMATS.items() if any(map(form.is_weights, files))]
    if names == ["sparsify", "quirke2025"]:
        config = folder / "cfg.json"
        papers = config.is_file() and sparsify.is_papers(read_json(config))
        return "quirke2025" if papers else "sparsify"
    if len(names) > 1:
        raise CheckpointError(
            f"{folder}: holds weights of several formats, {names}. Keep those of one."
        )
    if not names and any((folder / form.config).is_file() for form in FORMATS.values()):
        raise CheckpointError(f"{folder}: has a config but no weights; expected one of {WEIGHTS}.")
    return names[0] if names else None
