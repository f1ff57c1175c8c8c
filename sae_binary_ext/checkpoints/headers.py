"""Coders of a repository without their weights: configs, and the headers of weight files."""

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import SafetensorsFileMetadata

from sae_binary_ext.checkpoints.files import headers_alone
from sae_binary_ext.checkpoints.formats import CODER_FILES
from sae_binary_ext.checkpoints.normalization import SCALING_FILES
from sae_binary_ext.checkpoints.sources import (
    SPARSITY_FILE,
    choose,
    errors_of_hub,
    every_coder,
    is_repository,
    reachable_files,
    run_configs,
)


@contextmanager
def described_folders(source: str | Path, hookpoint: str | None) -> Generator[dict[str, Path]]:
    """The folders of a source's coders, by name, for as long as they are described.

    Args:
        source: as load_coder takes it. Of a repository the configs are downloaded, and of weights
            in safetensors the header; read_tensors then gives tensors without values.
        hookpoint: as load_coder takes it.

    Raises:
        CheckpointError: there are no coders.
    """
    files = None
    if is_repository(source):
        with errors_of_hub(f"{source}: cannot be downloaded"):
            files = reachable_files(str(source))
    if files is None:
        yield every_coder(source, hookpoint)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / str(source).rpartition("/")[2]
        with errors_of_hub(f"{source}: cannot be downloaded"):
            names = choose(str(source), hookpoint, files, list)
            weights = _download(str(source), names, set(files), root)
        with headers_alone(weights):
            yield {name: root / name for name in names}


def _download(repository: str, names: list[str], files: set[str], root: Path) -> list[Path]:
    """Lay out configs and headers; returns the files that are a header alone."""
    kept = (*CODER_FILES, *SCALING_FILES, SPARSITY_FILE)
    paths = {(PurePosixPath(name) / one).as_posix() for name in names for one in kept} & files
    large = {path for path in paths if path.endswith(".safetensors") and not _is_small(path)}
    small = sorted(paths - large | run_configs(names) & files)
    snapshot = Path(snapshot_download(repository, allow_patterns=small))
    for path in small:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / path, root / path)
    for path in sorted(large):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        _write_header(HfApi().parse_safetensors_file_metadata(repository, path), root / path)
    return [root / path for path in sorted(large)]


def _is_small(path: str) -> bool:
    """Whether a safetensors file is a record of a number a latent, or fewer."""
    return path.endswith((SPARSITY_FILE, "activations_store_state.safetensors"))


def _write_header(header: SafetensorsFileMetadata, path: Path) -> None:
    """Write a safetensors file whose values are a hole, which takes no space."""
    entries = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
        for name, one in header.tensors.items()
    }
    text = json.dumps(entries).encode()
    size = max((one.data_offsets[1] for one in header.tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
