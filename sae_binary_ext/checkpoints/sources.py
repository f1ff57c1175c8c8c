"""Where coders come from: a folder, a folder of folders, or a repository of the Hub."""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from sae_binary_ext.checkpoints import elsewhere
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.formats import CODER_FILES, FORMATS, WEIGHTS, format_of
from sae_binary_ext.checkpoints.hook_names import is_hookpoint
from sae_binary_ext.checkpoints.normalization import SCALING_FILES
from sae_binary_ext.checkpoints.portable import PortableCoder

# Beside a coder's own files: SAELens' firing statistics, and figures as the demo writes them.
SPARSITY_FILE, METRICS_FILE = "sparsity.safetensors", "metrics.json"
RUN_CONFIG = "config.json"  # sparsify's, in the folder of a run
HUB_SECONDS = 10  # to wait for the Hub's answer
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find_coder(source: str | Path, hookpoint: str | None) -> Path:
    """The folder of one coder, downloaded if need be.

    Args:
        source: a coder's folder, a folder of such folders, or a Hub id of either.
        hookpoint: the folder's name in its source; where the source is a coder's own folder,
            nothing is chosen by it.

    Raises:
        CheckpointError: there is no such coder, or there are several.
    """
    found = find_coders(source, hookpoint)
    if len(found) > 1:
        raise CheckpointError(f"{source}: holds several coders; choose one of {sorted(found)}.")
    return next(iter(found.values()))


def find_coders(source: str | Path, hookpoint: str | None) -> dict[str, Path]:
    """The folders of all coders of a source, or of the one chosen, by their names in it.

    Raises:
        CheckpointError: there are none.
    """
    if hookpoint is not None:
        check_name(hookpoint)
    if is_repository(source):
        with errors_of_hub(f"{source}: cannot be downloaded"):
            return _download(str(source), hookpoint)
    root = Path(source)
    return _under(root, choose(source, hookpoint, _files_under(root)))


@contextmanager
def errors_of_hub(problem: str) -> Generator[None]:
    """Raise CheckpointError for whatever goes wrong with the Hub within."""
    try:
        yield
    except CheckpointError:
        raise
    # Beside its own errors, huggingface_hub lets through those of its HTTP library, which is
    # another one in each of its major versions.
    except Exception as error:
        raise CheckpointError(f"{problem}: {error}") from error


def is_repository(source: str | Path) -> bool:
    """Whether a source is a repository's id rather than a folder.

    Raises:
        CheckpointError: it is neither.
    """
    if Path(source).exists():
        return False
    if isinstance(source, Path) or not REPOSITORY.fullmatch(source):
        raise CheckpointError(f"{source}: is no folder and no repository's id (user/name).")
    return True


def repository_files(repository: str) -> list[str]:
    """Paths of all files of a repository, asked for once."""
    # Listing its tree would try six times, with pauses, where there is no network.
    information = HfApi().model_info(repository, timeout=HUB_SECONDS)
    return [one.rfilename for one in information.siblings or []]


def reachable_files(repository: str) -> list[str] | None:
    """As repository_files; None where the Hub does not answer and the cache has a copy."""
    try:
        return repository_files(repository)
    except HfHubHTTPError:
        raise
    # No answer, for whatever reason.
    except Exception as error:
        if _cached(repository) is None:
            raise CheckpointError(
                f"{repository}: the Hub cannot be reached ({type(error).__name__}), and no copy of "
                "it was downloaded before. Check the network, or give a folder."
            ) from error
        return None


def _cached(repository: str) -> Path | None:
    """What was downloaded of a repository before, which serves without a network."""
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _download(repository: str, hookpoint: str | None) -> dict[str, Path]:
    files = reachable_files(repository)
    if files is None:
        root = Path(snapshot_download(repository, local_files_only=True))
        return _under(root, choose(repository, hookpoint, _files_under(root)))
    chosen = choose(repository, hookpoint, files)
    names = (*CODER_FILES, *SCALING_FILES, SPARSITY_FILE, METRICS_FILE)
    wanted = [(PurePosixPath(folder) / name).as_posix() for folder in chosen for name in names]
    return _under(Path(snapshot_download(repository, allow_patterns=[*wanted, RUN_CONFIG])), chosen)


def check_name(name: str) -> None:
    """Raise CheckpointError where a coder's name would lead out of the folder it is put in."""
    parts = PurePosixPath(name).parts
    named = bool(parts) or name == "."
    if not named or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{name!r}: a coder's name stays within its folder.")


def read_coder(folder: Path, hookpoint: str | None = None) -> PortableCoder:
    """The coder of a folder, with the place that its folder or its run says it has.

    Raises:
        CheckpointError: see the formats' read.
    """
    name = format_of(folder)
    if name is None:
        raise elsewhere.no_coder(folder, _files_under(folder), WEIGHTS)
    coder = FORMATS[name].read(folder)
    place = coder.place
    if FORMATS[name].named_by_folder:
        named = folder.resolve().name
        kept = None if is_hookpoint(named) else place.hookpoint
        stated = hookpoint or kept or named
        if stated != place.hookpoint:
            # Whatever SAELens' names it had, they were another place's.
            place = replace(place, hookpoint=stated, hook_name=None, hook_name_out=None)
        place = replace(place, model_name=place.model_name or _model_of_run(folder.parent))
    elif hookpoint is not None and place.hook_name is None and not _is_path(hookpoint, folder):
        place = replace(place, hookpoint=hookpoint)
    return replace(coder, place=place)


def _is_path(hookpoint: str, folder: Path) -> bool:
    """Whether it names a folder, and no place in a model."""
    return PurePosixPath(hookpoint).name == folder.resolve().name and not is_hookpoint(hookpoint)


def _model_of_run(folder: Path) -> str | None:
    path = folder / RUN_CONFIG
    model = read_json(path).get("model") if path.is_file() else None
    return model if isinstance(model, str) else None


def _files_under(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in root.rglob("*")]


def choose(source: str | Path, hookpoint: str | None, files: Iterable[str]) -> list[str]:
    """The folders, among those that hold one of these files, of the coders asked for.

    Raises:
        CheckpointError: there are none, or a name leads out of the source.
    """
    listed = list(files)
    weights = [path for path in map(PurePosixPath, listed) if any(map(path.match, WEIGHTS))]
    folders = sorted({str(path.parent) for path in weights})
    names = [name for name in folders if not elsewhere.is_openmoss(name, listed)]
    if not names:
        raise elsewhere.no_coder(source, listed, WEIGHTS)
    if hookpoint in names:
        return [hookpoint]
    if "." in names:
        return ["."]
    if hookpoint is not None:
        # The hookpoint of the only coder, whose files do not say it.
        if len(names) == 1 and all(FORMATS["cho2025"].is_weights(path.name) for path in weights):
            return names
        raise CheckpointError(f"{source}: holds no coder {hookpoint!r} but {names}.")
    for name in names:
        check_name(name)
    return names


def _under(root: Path, names: list[str]) -> dict[str, Path]:
    return {name: root / name for name in names}
