"""Where coders come from: a folder, a folder of folders, or a repository of the Hub."""

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from sae_binary_ext.checkpoints import elsewhere
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.formats import CODER_FILES, FORMATS, WEIGHTS, format_of
from sae_binary_ext.checkpoints.hook_names import is_hookpoint, is_place, model_class_of, same_place
from sae_binary_ext.checkpoints.normalization import SCALING_FILES
from sae_binary_ext.checkpoints.portable import Place, PortableCoder
from sae_binary_ext.checkpoints.runs import (
    RUN_CONFIG,
    hookpoint_in,
    hookpoint_of_run,
    model_of,
    run_config,
    with_text_settings,
)

# Beside a coder's own files: SAELens' firing statistics, and figures as the demo writes them.
SPARSITY_FILE, METRICS_FILE = "sparsity.safetensors", "metrics.json"
# The name of a coder at the root of its source, and what SAELens' runner puts its checkpoints into.
ROOT, CHECKPOINTS = ".", "checkpoints/"
HUB_SECONDS = 10  # to wait for the Hub's answer
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find_coder(source: str | Path, hookpoint: str | None) -> tuple[str, Path]:
    """The name and the folder of one coder, downloaded if need be.

    Args:
        source: a coder's folder, a folder of such folders, or a Hub id of either. Of several
            coders the one at its root is meant, if no other is named.
        hookpoint: the folder's name in its source; or, for a coder at the source's root, the place
            that it has or its files do not tell.

    Raises:
        CheckpointError: there is no such coder, or there are several.
    """
    found = find_coders(source, hookpoint)
    if ROOT in found:
        return ROOT, found[ROOT]
    if len(found) > 1:
        raise CheckpointError(f"{source}: holds several coders; choose one of {sorted(found)}.")
    return next(iter(found.items()))


def find_coders(source: str | Path, hookpoint: str | None) -> dict[str, Path]:
    """The folders of a source's coders, or of those in the folder named, by their names in it.

    Checkpoints of SAELens' runner are left out beside the coder that it ended with.

    Raises:
        CheckpointError: there are none.
    """
    return _find(source, hookpoint, _without_checkpoints)


def every_coder(source: str | Path, hookpoint: str | None) -> dict[str, Path]:
    """As find_coders, the checkpoints of SAELens' runner included."""
    return _find(source, hookpoint, lambda names: names)


def _find(
    source: str | Path, hookpoint: str | None, keep: Callable[[list[str]], list[str]]
) -> dict[str, Path]:
    if hookpoint is not None:
        check_name(hookpoint)
    if is_repository(source):
        with errors_of_hub(f"{source}: cannot be downloaded"):
            return _download(str(source), hookpoint, keep)
    root = Path(source)
    return _under(root, choose(source, hookpoint, _files_under(root), keep))


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


def _download(
    repository: str, hookpoint: str | None, keep: Callable[[list[str]], list[str]]
) -> dict[str, Path]:
    files = reachable_files(repository)
    if files is None:
        root = Path(snapshot_download(repository, local_files_only=True))
        return _under(root, choose(repository, hookpoint, _files_under(root), keep))
    chosen = choose(repository, hookpoint, files, keep)
    names = (*CODER_FILES, *SCALING_FILES, SPARSITY_FILE, METRICS_FILE)
    wanted = [(PurePosixPath(folder) / name).as_posix() for folder in chosen for name in names]
    patterns = [*wanted, *run_configs(chosen)]
    return _under(Path(snapshot_download(repository, allow_patterns=patterns)), chosen)


def run_configs(names: Iterable[str]) -> set[str]:
    """Paths where the configs of runs may stand that coders of these names belong to."""
    folders = [PurePosixPath(name) for name in names]
    return {(above / RUN_CONFIG).as_posix() for each in folders for above in (each, *each.parents)}


def check_name(name: str) -> None:
    """Raise CheckpointError where a coder's name would lead out of the folder it is put in."""
    parts = PurePosixPath(name).parts
    named = bool(parts) or name == "."
    if not named or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{name!r}: a coder's name stays within its folder.")


def stated_place(name: str, hookpoint: str | None) -> str | None:
    """What hookpoint says of a coder beside choosing its folder: a place in a model."""
    chooses = hookpoint in (None, name) or name.startswith(f"{hookpoint}/")
    return None if chooses else hookpoint


def read_coder(folder: Path, stated: str | None = None) -> PortableCoder:
    """The coder of a folder, with the place that its files, its folder or its run say it has.

    Args:
        folder: a coder's own.
        stated: a hookpoint or SAELens' name of a hook, where the files do not tell one.

    Raises:
        CheckpointError: see the formats' read; or its files tell another place than stated.
    """
    name = format_of(folder)
    if name is None:
        raise elsewhere.no_coder(folder, _files_under(folder), WEIGHTS)
    coder = FORMATS[name].read(folder)
    if FORMATS[name].named_by_folder:
        run = run_config(folder)
        place = _place_by_folder(coder.place, folder)
        place = replace(place, model_name=place.model_name or model_of(run))
        coder = with_text_settings(replace(coder, place=place), run)
    if stated is not None:
        _check_stated(coder.place, stated, folder)
        coder = replace(coder, place=_stated(coder.place, stated, FORMATS[name].named_by_folder))
    if FORMATS[name].named_by_folder and not _names_of(coder.place):
        # No module by this name is known. Errors name it, and a line of HOOK_NAMES may know it.
        named = hookpoint_in(folder.resolve())
        coder = replace(coder, place=replace(coder.place, hookpoint=named))
    return coder


def is_told(place: Place) -> bool:
    """Whether a coder's files tell where it belongs, and its folder's name is not all there is."""
    return any(is_place(name) for name in _names_of(place)) or place.hook_name is not None


def _place_by_folder(place: Place, folder: Path) -> Place:
    """The place that the folder's name tells, or the coder's own notes, or its run."""
    named = hookpoint_in(folder.resolve())
    told = named if is_hookpoint(named) else place.hookpoint or hookpoint_of_run(folder)
    if told is None or told == place.hookpoint:
        return place
    # The hook names in its notes belong to another place.
    return replace(place, hookpoint=told, hook_name=None, hook_name_out=None)


def _stated(place: Place, stated: str, named_by_folder: bool) -> Place:
    """The place of a coder whose files do not tell, in the words of its format."""
    if _names_of(place):
        return place
    # SAELens has models whose hooks are modules, named with their wrappers.
    module_of_saelens = not named_by_folder and model_class_of(stated) is not None
    if is_hookpoint(stated) and not module_of_saelens:
        return replace(place, hookpoint=stated)
    return replace(place, hook_name=stated)


def _check_stated(place: Place, stated: str, folder: Path) -> None:
    if told := _names_of(place):
        check_stated(folder, told, stated, place.model_name)
    elif not is_place(stated):
        raise CheckpointError(
            f"{folder}: holds one coder, whose files do not tell its place, and {stated!r} is "
            "neither a folder there nor a place in a model. Name its hookpoint (layers.9, h.9.mlp) "
            "or its hook in SAELens (blocks.9.hook_resid_post)."
        )


def _names_of(place: Place) -> list[str]:
    return [name for name in (place.hookpoint, place.hook_name) if name is not None]


def check_stated(folder: Path, told: list[str], stated: str, model_name: str | None) -> None:
    """Raise CheckpointError where a coder's files tell another place than its user states."""
    if not any(name == stated or same_place(name, stated, model_name) for name in told):
        raise CheckpointError(
            f"{folder}: holds no coder {stated!r}. Its files say that the coder there belongs at "
            f"{' or '.join(told)}; leave the hookpoint out to load it."
        )


def _files_under(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in root.rglob("*")]


def choose(
    source: str | Path,
    hookpoint: str | None,
    files: Iterable[str],
    keep: Callable[[list[str]], list[str]],
) -> list[str]:
    """The folders of the coders asked for.

    Args:
        source: for the errors.
        hookpoint: a folder's name, or the place of the only coder; None for all that keep keeps.
        files: paths of all files of the source.
        keep: leaves out some of the folders.

    Raises:
        CheckpointError: there are none, or a name leads out of the source.
    """
    listed = list(files)
    names = _coders_among(listed)
    if not names:
        raise elsewhere.no_coder(source, listed, WEIGHTS)
    for name in names:
        check_name(name)
    if hookpoint is None:
        return keep(names)
    if hookpoint in names:
        return [hookpoint]
    # Coders of several seeds, or the best of a run.
    if within := [name for name in names if name.startswith(f"{hookpoint}/")]:
        return within
    only = _without_checkpoints(names)
    may_be_root = only == [ROOT] and (names == only or is_place(hookpoint))
    if may_be_root or (len(only) == 1 and _is_unplaced(only[0], listed)):
        # Its files say whether it is that coder; read_coder looks.
        return only
    raise CheckpointError(f"{source}: holds no coder {hookpoint!r} but {names}.")


def _is_unplaced(name: str, files: Iterable[str]) -> bool:
    """Whether a folder's coder is of the second paper, whose files name no place in a model."""
    inside = [path for path in map(PurePosixPath, files) if str(path.parent) == name]
    return any(FORMATS["cho2025"].is_weights(path.name) for path in inside)


def _coders_among(files: Iterable[str]) -> list[str]:
    """Folders of coders. A model.pt without its config may be anything, beside other coders."""
    paths = {PurePosixPath(file) for file in files}
    weights = {path for path in paths if any(map(path.match, WEIGHTS))}
    certain = {path for path in weights if path.suffix != ".pt" or _has_config(path, paths)}
    folders = sorted({str(path.parent) for path in certain or weights})
    return [name for name in folders if not elsewhere.is_openmoss(name, map(str, paths))]


def _has_config(weights: PurePosixPath, paths: set[PurePosixPath]) -> bool:
    forms = [form for form in FORMATS.values() if form.is_weights(weights.name)]
    patterns = [name for form in forms for name in (form.config, form.other_config) if name]
    beside = [path.name for path in paths if path.parent == weights.parent]
    return any(fnmatchcase(name, pattern) for name in beside for pattern in patterns)


def _without_checkpoints(names: list[str]) -> list[str]:
    return [name for name in names if ROOT not in names or not name.startswith(CHECKPOINTS)]


def _under(root: Path, names: list[str]) -> dict[str, Path]:
    return {name: root / name for name in names}
