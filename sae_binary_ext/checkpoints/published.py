"""Published coders that SAELens loads: its releases, and the files of other libraries."""

import logging
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_binary_ext.checkpoints import elsewhere, releases, sources, stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import errors_told

logger = logging.getLogger(__name__)
OWN = "sae_lens"  # SAELens' name of the loader of its own files


@dataclass(frozen=True)
class Published:
    """A coder that SAE.from_pretrained loads.

    Attributes:
        release, own_id: SAELens' names of it. For a coder of no release, its repository and path.
        converter: SAELens' name of the loader of its files.
    """

    release: str
    own_id: str
    converter: str

    @property
    def name(self) -> str:
        """The coder's name as `compare` and load_coder take it."""
        return f"{self.release}/{self.own_id}"


def find_published(source: str | Path, hookpoint: str | None = None) -> Published | None:
    """The published coder that a source names, or None if this package's own formats have it.

    Arguments are those of load_coder. CheckpointError if a release or a repository of such coders
    has no coder of this name, or the Hub cannot be reached.
    """
    if Path(source).exists() or isinstance(source, Path):
        return None
    first, _, rest = "/".join(filter(None, (source, hookpoint))).partition("/")
    if first in releases.release_names():
        releases.check_id(first, rest)
        return _of_release(first, rest)
    repository, path = sources.split(source, hookpoint)
    if path is None or not sources.is_repository(repository):
        return None
    if releases.is_listed(repository) and (known := releases.listed_at(path, repository)):
        return _of_release(*known[0])
    with errors_told(releases.not_downloaded(source)):
        files = sources.known_files(repository)
    others, own = elsewhere.paths_elsewhere(files), sources.names_among(files)
    if path in others and path not in own:
        return Published(repository, path, others[path])
    if others and not own:
        near = releases.nearest(path, others)
        raise CheckpointError(f"{repository}: holds no coder {path!r}. The nearest are {near}.")
    return None


def _of_release(release: str, own_id: str) -> Published:
    return Published(release, own_id, releases.release(release).conversion_func or OWN)


def load_published(coder: Published, device: str = "cpu") -> Any:
    """Download a coder and load it in SAELens, in float32 as SAE.from_pretrained does.

    CheckpointError if SAELens refuses it, or its weights are not finite.
    """
    import_module("sae_binary_ext.saelens")  # raises an error with advice without SAELens
    import sae_lens
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    loader: Any = sae_lens.SAE
    converter = _own_loader if coder.converter == OWN else None
    if coder.release not in releases.release_names():
        converter = NAMED_PRETRAINED_SAE_LOADERS[coder.converter]
    with errors_told(f"{coder.name}: its host refuses it"):
        loaded = loader.from_pretrained(
            coder.release, coder.own_id, device=device, converter=converter
        )
    for name, tensor in loaded.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{coder.name}: {name} holds values that are not finite.")
    if re.search(r"\bclt\b", coder.name):
        logger.warning(
            "%s is one layer of a cross-layer transcoder. SAELens sums its decoders, so its codes "
            "are right, and its output predicts no single layer.",
            coder.name,
        )
    return loaded


def _own_loader(
    repo_id: str, folder_name: str, device: str, force_download: bool, cfg_overrides: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """SAELens' files as SAE.from_pretrained wants them, with the checks of stock.load."""
    del force_download  # load_published never asks for it
    folder = sources.find_coders(repo_id, folder_name)[folder_name]
    return *stock.checked_and_folded(folder, device, cfg_overrides), None
