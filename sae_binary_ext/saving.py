"""Saves that a killed process leaves done or not begun, and never halfway."""

import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

# Under it, a saved config of any format keeps what the format has no place for (see
# checkpoints.portable).
NOTES_KEY = "sae_binary_ext"


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """A new folder to write files to, which take their place in another at the end, all at once.

    Other files of the old folder stay. An error within leaves the old folder as it was. The folder,
    and each file in it that is replaced, keep their mode, and owner, group and access control list
    where the system lets us set them. A folder that is new gets those that mkdir would give it, and
    so does a new file.

    Where a folder cannot change places with another (it has subfolders and the new one has none, is
    the working directory or a mount point, or neither Linux nor macOS keeps it) its files are
    replaced one by one, each whole.

    Args:
        folder: need not exist.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(folder)
    try:
        with _noting_that_nothing_changed(folder):
            shutil.rmtree(new, ignore_errors=True)  # a killed process's
            _make_like(new, folder)
            yield new
            _write_through(new)
        if not folder.exists():
            new.rename(folder)
        elif not (_is_movable(new, folder) and _exchange_keeping_others(new, folder)):
            _replace_one_by_one(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _noting_that_nothing_changed(folder: Path) -> Generator[None]:
    """Errors within it, of a full disk say, tell what was being saved and what still stands."""
    try:
        yield
    except Exception as error:  # of whatever kind: it goes on as it was, with a note
        error.add_note(f"This was a save to {folder}, where nothing has changed.")
        raise


def _beside(folder: Path) -> Path:
    """Where the new folder is made: not next to the old one, if that can be helped.

    sparsify takes every folder next to a coder's for a coder, a killed process's too.
    """
    name = f".{folder.parent.name}.{folder.name}.new"
    above = folder.parent.parent
    same_device = above.stat().st_dev == folder.parent.stat().st_dev
    return (above if same_device and os.access(above, os.W_OK) else folder.parent) / name


def _make_like(new: Path, folder: Path) -> None:
    """Make a folder whose files get the group and access control list that they get in another."""
    if os.name != "posix":
        new.mkdir()
        return
    if folder.exists():
        new.mkdir(mode=0o700)
        _copy_permissions(folder, new)
        # Nobody else looks in until its files have their permissions.
        new.chmod(new.stat().st_mode & stat.S_ISGID | 0o700)
        return
    # It is made elsewhere, and mkdir takes group, setgid bit and default list from where it makes.
    new.mkdir()
    parent = folder.parent.stat()
    inherits = bool(parent.st_mode & stat.S_ISGID)
    mode = stat.S_IMODE(new.stat().st_mode) & ~stat.S_ISGID
    with suppress(OSError):  # of a group that this user is not in
        os.chown(new, -1, parent.st_gid if inherits or sys.platform == "darwin" else os.getegid())
    new.chmod(mode | stat.S_ISGID * inherits)
    _copy_default_list(folder.parent, new)


def _keep_permissions(old: Path, new: Path) -> None:
    """Give new, and all that is in it, the permissions of what it takes the place of in old."""
    for path in (*new.rglob("*"), new):
        _keep_permissions_of_one(old / path.relative_to(new), path)


def _keep_permissions_of_one(old: Path, new: Path) -> None:
    if os.name != "posix" or not old.exists() or old.is_symlink() or new.is_symlink():
        return
    if not new.samefile(old):
        _copy_permissions(old, new)


def _copy_permissions(source: Path, target: Path) -> None:
    """Group, owner, access control list and mode, in this order: a change of owner clears bits."""
    status = source.stat()
    for owner, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with suppress(OSError):  # only root gives files away
            os.chown(target, owner, group)
    if sys.platform == "linux":
        for name in _access_lists(source):
            with suppress(OSError):  # not every file system takes what another has
                os.setxattr(target, name, os.getxattr(source, name))
    target.chmod(stat.S_IMODE(status.st_mode))


def _copy_default_list(parent: Path, folder: Path) -> None:
    """Give a new folder the access control list that it would get if it were made in parent."""
    default = "system.posix_acl_default"
    if sys.platform != "linux" or default not in _access_lists(parent):
        return
    with suppress(OSError):
        for name in (default, "system.posix_acl_access"):
            os.setxattr(folder, name, os.getxattr(parent, default))


def _access_lists(path: Path) -> list[str]:
    """Names of the extended attributes that say who may do what; others tell of the content."""
    with suppress(OSError):  # a file system without them
        if sys.platform == "linux":
            return [name for name in os.listxattr(path) if name.startswith("system.")]
    return []


def _write_through(folder: Path) -> None:
    """Leave nothing of it in memory alone, should the machine stop."""
    if os.name != "posix":
        return
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_movable(new: Path, old: Path) -> bool:
    # Subfolders may be in use by others, unless whoever saves has folders of its own there.
    owned = _has_folders(new) or not _has_folders(old)
    return owned and not old.is_mount() and not Path.cwd().is_relative_to(old)


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in folder.iterdir())


def _exchange_keeping_others(new: Path, old: Path) -> bool:
    for path in old.iterdir():
        if (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, new / path.name)
    _keep_permissions(old, new)
    return _exchange(new, old)


def _link(path: str | Path, link: str | Path) -> None:
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, link, follow_symlinks=False)


def _replace_one_by_one(new: Path, old: Path) -> None:
    new.chmod(0o700)  # an exchange that failed may have left it unwritable
    for path in sorted(new.rglob("*")):
        place = old / path.relative_to(new)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            _keep_permissions_of_one(place, path)
            path.replace(place)


def _exchange(new: Path, old: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    paths = os.fsencode(new), os.fsencode(old)
    swap = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
        here = -100  # AT_FDCWD
        return rename is not None and rename(here, paths[0], here, paths[1], swap) == 0
    if sys.platform == "darwin":
        return ctypes.CDLL(None).renamex_np(*paths, swap) == 0
    return False
