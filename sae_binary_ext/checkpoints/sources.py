"""Finds coders in folders and in repositories of the Hub, and the formats of their files.

To add a format, write a module and a line in FORMATS.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from sae_binary_ext.checkpoints import cho2025, elsewhere, releases, runs, saelens, sparsify
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import errors_told, read_json
from sae_binary_ext.checkpoints.hook_names import is_hookpoint, is_place, model_class_of, same_place
from sae_binary_ext.checkpoints.normalization import SCALING_FILES
from sae_binary_ext.checkpoints.portable import Place, PortableCoder

# Files beside a coder's own: SAELens' firing statistics, and figures that the demo writes.
SPARSITY_FILE, METRICS_FILE = "sparsity.safetensors", "metrics.json"
# The name of a coder at the root of its source, and the folder of SAELens' checkpoints.
ROOT, CHECKPOINTS = ".", "checkpoints/"
# The folder, beside a coder's own files, of its form that SAELens loads without this package.
STOCK = "stock"
MOST_TOLD = 12  # coders that an error lists; of more, it names the nearest
HUB_SECONDS = 10  # how long to wait for an answer of the Hub
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# A repository's id and the path of a coder in it.
WITHIN_REPOSITORY = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)/(?P<path>.+)")


@dataclass(frozen=True)
class Format:
    """A format of coders: the names of its two files, and functions that read and write a folder.

    other_config and other_weights are fnmatch patterns of names that the format's own code writes.
    named_by_folder: whether the name of a coder's folder is its hookpoint.
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
# Names of files that may be a coder's, and fnmatch patterns of names.
WEIGHTS = sorted(
    {name for form in FORMATS.values() for name in (form.weights, form.other_weights) if name}
)
CODER_FILES = sorted([*WEIGHTS, *_CONFIGS])


def find_coder(source: str | Path, hookpoint: str | None) -> tuple[str, Path]:
    """The name and the folder of one coder, downloaded if needed. load_coder explains arguments.

    If there are several coders and no hookpoint, the one at the root of the source is taken.
    CheckpointError if the source lacks the coder, or has several and none at the root.
    """
    found = find_coders(source, hookpoint)
    if ROOT not in found and len(found) > 1:
        raise CheckpointError(f"{source}: holds several coders; choose one of {sorted(found)}.")
    name = ROOT if ROOT in found else next(iter(found))
    return name, found[name]


def find_coders(
    source: str | Path, hookpoint: str | None, checkpoints: bool = False
) -> dict[str, Path]:
    """The folders of a source's coders by their names. load_coder explains the arguments.

    If a run of SAELens ended with a coder, its earlier checkpoints are left out, unless
    `checkpoints` is True; so are stock forms beside their coders. CheckpointError if there are no
    coders.
    """
    source, hookpoint = split(source, hookpoint)
    if hookpoint is not None:
        check_name(hookpoint)
    if is_repository(source):
        with errors_told(releases.not_downloaded(source)):
            root, names = _download(str(source), hookpoint, checkpoints)
    else:
        root = Path(source)
        names = choose(source, hookpoint, _files_under(root), checkpoints)
    return {name: root / name for name in names}


def split(source: str | Path, hookpoint: str | None) -> tuple[str | Path, str | None]:
    """A folder, or a repository's id, and the coder in it. user/repo/layers.9 names both in one."""
    within = WITHIN_REPOSITORY.fullmatch(str(source))
    if within is None or isinstance(source, Path) or Path(source).exists():
        return source, hookpoint
    return within["id"], "/".join(filter(None, (within["path"].strip("/"), hookpoint)))


def is_repository(source: str | Path) -> TypeGuard[str]:
    """Whether a source is a repository's id and not a folder. CheckpointError if it is neither."""
    if Path(source).exists():
        return False
    if isinstance(source, Path) or not REPOSITORY.fullmatch(source):
        raise CheckpointError(
            f"{source}: is neither a folder nor a repository's id (user/name)"
            f"{releases.mistyped(source)}."
        )
    if (first := source.partition("/")[0]) in releases.release_names():
        raise CheckpointError(
            f"{source}: {first} is a release of SAELens. Write its coder to a folder first, with "
            "load_coder(RELEASE/ID).save_model(FOLDER), and name the folder."
        )
    return True


def repository_files(repository: str) -> list[str]:
    """Paths of all files of a repository, by a single request."""
    # A request for the file tree would be tried six times, with pauses, if there is no network.
    information = HfApi().model_info(repository, timeout=HUB_SECONDS)
    return [one.rfilename for one in information.siblings or []]


def reachable_files(repository: str) -> list[str] | None:
    """Paths of a repository's files, or None if the Hub is silent and the cache has a copy."""
    try:
        return repository_files(repository)
    except HfHubHTTPError:
        raise
    # Any other error means that the Hub did not answer.
    except Exception as error:
        try:
            snapshot_download(repository, local_files_only=True)
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"{repository}: the Hub cannot be reached ({type(error).__name__}), and no copy of "
                "it was downloaded before. Check the network, or give a folder."
            ) from error
        return None


def known_files(repository: str) -> list[str]:
    """Paths of a repository's files: on the Hub, or if it is silent, of the copy in the cache."""
    files = reachable_files(repository)
    if files is not None:
        return files
    return _files_under(Path(snapshot_download(repository, local_files_only=True)))


def _download(repository: str, hookpoint: str | None, checkpoints: bool) -> tuple[Path, list[str]]:
    """The local folder of a repository, and the names of the coders chosen in it."""
    files = reachable_files(repository)
    if files is None:
        root = Path(snapshot_download(repository, local_files_only=True))
        return root, choose(repository, hookpoint, _files_under(root), checkpoints)
    chosen = choose(repository, hookpoint, files, checkpoints)
    patterns = sorted(beside(chosen, METRICS_FILE) | run_configs(chosen))
    return Path(snapshot_download(repository, allow_patterns=patterns)), chosen


def beside(names: Iterable[str], *further: str) -> set[str]:
    """Paths, or patterns of paths, of the files that coders of these names may have."""
    files = (*CODER_FILES, *SCALING_FILES, SPARSITY_FILE, *further)
    return {(PurePosixPath(name) / file).as_posix() for name in names for file in files}


def run_configs(names: Iterable[str]) -> set[str]:
    """Paths where the configs of the runs of these coders may be."""
    folders = [PurePosixPath(name) for name in names]
    parents = {above for folder in folders for above in (folder, *folder.parents)}
    return {(above / runs.RUN_CONFIG).as_posix() for above in parents}


def check_name(name: str) -> None:
    """Raise CheckpointError if a coder's name would lead out of the folder that contains it."""
    parts = PurePosixPath(name).parts
    named = bool(parts) or name == "."
    if not named or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{name!r}: a coder's name stays within its folder.")


def stated_place(name: str, hookpoint: str | None) -> str | None:
    """The hookpoint, if it names a place in a model and not the coder's folder."""
    chooses = hookpoint in (None, name) or name.startswith(f"{hookpoint}/")
    return None if chooses else hookpoint


def read_coder(folder: Path, stated: str | None = None) -> PortableCoder:
    """Read a folder's coder. The place in a model comes from its files, folder's name or run.

    stated: a hookpoint or SAELens' name of a hook, for a coder whose files tell no place.
    CheckpointError if the files are damaged, or tell another place than `stated`.
    """
    name = format_of(folder)
    if name is None:
        raise elsewhere.no_coder(folder, _files_under(folder), WEIGHTS)
    coder, named_by_folder = FORMATS[name].read(folder), FORMATS[name].named_by_folder
    place = coder.place
    if named_by_folder:
        run = runs.run_config(folder)
        place = _place_by_folder(place, folder)
        place = replace(place, model_name=place.model_name or runs.model_of(run))
        coder = runs.with_text_settings(replace(coder, place=place), run)
    if stated is not None:
        place = _place_as_stated(place, stated, folder, named_by_folder)
    if named_by_folder and not _names_of(place):
        # Keep a folder's name that is no known module: errors show it, and HOOK_NAMES may have it.
        place = replace(place, hookpoint=runs.hookpoint_in(folder.resolve()))
    return coder if place == coder.place else replace(coder, place=place)


def is_told(place: Place) -> bool:
    """Whether the place of a coder is known. A folder's name that is no place does not count."""
    return place.hook_name is not None or any(map(is_place, _names_of(place)))


def _place_by_folder(place: Place, folder: Path) -> Place:
    """The place that the folder's name tells, or else the coder's notes, or else its run."""
    named = runs.hookpoint_in(folder.resolve())
    told = named if is_hookpoint(named) else place.hookpoint or runs.hookpoint_of_run(folder)
    if told is None or told == place.hookpoint:
        return place
    # The hookpoint changed, so the old hook names are wrong.
    return replace(place, hookpoint=told, hook_name=None, hook_name_out=None)


def _place_as_stated(place: Place, stated: str, folder: Path, named_by_folder: bool) -> Place:
    """The coder's own place if it equals the stated place, which is used if files tell none."""
    if told := _names_of(place):
        check_stated(folder, told, stated, place.model_name)
        return place
    if not is_place(stated):
        raise CheckpointError(
            f"{folder}: holds one coder, whose files do not tell its place, and {stated!r} is "
            "neither a folder there nor a place in a model. Name its hookpoint (layers.9, h.9.mlp) "
            "or its hook in SAELens (blocks.9.hook_resid_post)."
        )
    # SAELens has models whose hooks are modules, named with their wrappers.
    module_of_saelens = not named_by_folder and model_class_of(stated) is not None
    if is_hookpoint(stated) and not module_of_saelens:
        return replace(place, hookpoint=stated)
    return replace(place, hook_name=stated)


def _names_of(place: Place) -> list[str]:
    return [name for name in (place.hookpoint, place.hook_name) if name is not None]


def check_stated(folder: Path, told: list[str], stated: str, model_name: str | None) -> None:
    """Raise CheckpointError if a coder's files tell another place than the stated one."""
    if not any(name == stated or same_place(name, stated, model_name) for name in told):
        raise CheckpointError(
            f"{folder}: holds no coder {stated!r}. Its files say that the coder there belongs at "
            f"{' or '.join(told)}; leave the hookpoint out to load it."
        )


def _files_under(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in root.rglob("*")]


def choose(
    source: str | Path, hookpoint: str | None, files: list[str], checkpoints: bool
) -> list[str]:
    """The folders of the chosen coders, among the paths of all files. See find_coders.

    CheckpointError if there are none, or a name leads out of the source.
    """
    paths = {PurePosixPath(file) for file in files}
    names = names_among(files)
    if not names:
        raise elsewhere.no_coder(source, files, WEIGHTS)
    for name in names:
        check_name(name)
    only = [
        name
        for name in without_stock_forms(names)
        if ROOT not in names or not name.startswith(CHECKPOINTS)
    ]
    if hookpoint is None:
        return names if checkpoints else only
    if hookpoint in names:
        return [hookpoint]
    # The hookpoint's folder may hold coders of several seeds, or the best coders of a run.
    if within := [name for name in without_stock_forms(names) if name.startswith(f"{hookpoint}/")]:
        return within
    may_be_root = only == [ROOT] and (names == only or is_place(hookpoint))
    # The second paper's files name no place in a model.
    inside = [path.name for path in paths if [str(path.parent)] == only]
    if may_be_root or any(map(FORMATS["cho2025"].is_weights, inside)):
        # read_coder compares the hookpoint with the place in the coder's files.
        return only
    told = names if len(names) <= MOST_TOLD else releases.nearest(hookpoint, names)
    raise CheckpointError(f"{source}: holds no coder {hookpoint!r} but {told}.")


def without_stock_forms(names: Iterable[str]) -> list[str]:
    """The names of coders, without the stock forms that stand beside their coders."""
    known = set(names)
    paths = map(PurePosixPath, names)
    return [str(one) for one in paths if one.name != STOCK or str(one.parent) not in known]


def names_among(files: Iterable[str]) -> list[str]:
    """Folders of coders. A model.pt without config counts only if no other coder exists."""
    paths = {PurePosixPath(file) for file in files}
    weights = {path for path in paths if any(map(path.match, WEIGHTS))}
    certain = {path for path in weights if path.suffix != ".pt" or _has_config(path, paths)}
    folders = {path.parent for path in certain or weights}
    return sorted(str(folder) for folder in folders if not _is_openmoss(folder, paths))


def _has_config(weights: PurePosixPath, paths: set[PurePosixPath]) -> bool:
    forms = [form for form in FORMATS.values() if form.is_weights(weights.name)]
    patterns = [name for form in forms for name in (form.config, form.other_config) if name]
    others = [path.name for path in paths if path.parent == weights.parent]
    return any(fnmatchcase(name, pattern) for name in others for pattern in patterns)


def _is_openmoss(folder: PurePosixPath, paths: set[PurePosixPath]) -> bool:
    """Whether OpenMOSS' library wrote a folder's weights, whose file name is also SAELens'."""
    own = {folder / FORMATS["saelens"].weights, folder / "config.json"}
    return own <= paths and folder / FORMATS["saelens"].config not in paths


def format_of(folder: Path) -> str | None:
    """A coder's format, or None. CheckpointError if weights fit several formats, or are missing."""
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
