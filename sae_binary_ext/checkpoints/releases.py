"""SAELens' list of published coders. A release holds coders by id; RELEASE/ID names one of them."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_binary_ext.checkpoints.errors import CheckpointError

# How alike two names are, from 0 to 1, if one may be a mistyped other. Without a slash, a name can
# be nothing but a release.
ALIKE, ALIKE_ALONE = 0.85, 0.5


@cache
def _text() -> str:
    """SAELens' list as text. Importing SAELens, and parsing the list, would take many seconds."""
    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        return ""
    return Path(spec.origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8")


@cache
def release_names() -> list[str]:
    """Names of all releases, or [] if SAELens is not installed."""
    return re.findall(r"^([\w.-]+):", _text(), re.MULTILINE)


def release(name: str) -> Any:
    """SAELens' own record of a release: its repo_id, conversion_func, saes_map and more."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()[name]


def is_listed(repository: str) -> bool:
    """Whether a release is in this repository of the Hub."""
    return f"repo_id: {repository}\n" in _text()


def listed_at(path: str, repository: str | None = None) -> list[tuple[str, str]]:
    """Release and id of coders at a path, one for each repository; None is any repository."""
    found: dict[str, tuple[str, str]] = {}
    for name in release_names():
        listed = release(name)
        for own_id, own_path in listed.saes_map.items():
            if own_path == path and repository in (None, listed.repo_id):
                found.setdefault(listed.repo_id, (name, own_id))
    return list(found.values())


def nearest(name: str, names: Iterable[str], cutoff: float = 0.0) -> str:
    """The names most like `name`, as text for an error, best first."""
    return ", ".join(get_close_matches(name, list(names), n=5, cutoff=cutoff))


def check_id(name: str, own_id: str) -> None:
    """Raise CheckpointError, with the nearest ids, if a release has no coder of this id."""
    ids = release(name).saes_map
    if own_id not in ids:
        start = f"{name}/{own_id}: {name} is a release of SAELens, with no coder {own_id!r}"
        if not own_id:
            start = (
                f"{name}: is a release of SAELens with {len(ids)} coders. Name one, as {name}/ID"
            )
        raise CheckpointError(f"{start}. The nearest ids are {nearest(own_id, ids)}.")


def mistyped(source: object) -> str:
    """The releases that a source may have meant, in brackets for an error, or ""."""
    first, slash, _ = str(source).partition("/")
    near = nearest(first, release_names(), ALIKE if slash else ALIKE_ALONE)
    return f" (SAELens has releases of similar names: {near})" if near else ""


def not_downloaded(source: object) -> str:
    """The start of an error on a repository that was not found or not reached."""
    return f"{source}: is no folder, and cannot be downloaded{mistyped(source)}"
