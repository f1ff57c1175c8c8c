"""Saves a folder all at once: a process killed at any moment leaves the old files or the new."""

import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

# Key under which a saved config keeps the data that its format has no field for.
NOTES_KEY = "sae_binary_ext"


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """Yield a new folder. Files that the caller writes there replace those in `folder` all at once.

    Other files in the old folder stay. An error in the block leaves the old folder as it was. The
    folder and each replaced file keep their mode, and their owner, group and access control list if
    the system allows it. A new folder or file gets the permissions that mkdir would give it.

    If the system cannot swap the two folders, each file is replaced on its own. The
    system cannot swap a mount point or the working directory, nor a folder with subfolders for one
    without. Only Linux and macOS can swap folders.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(folder)
    try:
        try:
            shutil.rmtree(new, ignore_errors=True)  # a killed process may have left the folder
            _make_like(new, folder)
            yield new
            _write_through(new)
        except Exception as error:
            error.add_note(f"This was a save to {folder}, where nothing has changed.")
            raise
        if not folder.exists():
            new.rename(folder)
        elif not (_is_movable(new, folder) and _exchange_keeping_others(new, folder)):
            _replace_one_by_one(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(folder: Path) -> Path:
    # sparsify would load a folder that a killed process left beside the coder's folder.
    name = f".{folder.parent.name}.{folder.name}.new"
    above = folder.parent.parent
    same_device = above.stat().st_dev == folder.parent.stat().st_dev
    return (above if same_device and os.access(above, os.W_OK) else folder.parent) / name


def _make_like(new: Path, folder: Path) -> None:
    """Make `new`, a folder whose files get the same group and access control list as `folder`."""
    if os.name != "posix":
        new.mkdir()
        return
    if folder.exists():
        new.mkdir(mode=0o700)
        _copy_permissions(folder, new)
        # Other users cannot look inside until the files have their permissions.
        new.chmod(new.stat().st_mode & stat.S_ISGID | 0o700)
        return
    # mkdir takes group, setgid bit and default list from new's parent, not from folder's parent.
    new.mkdir()
    parent = folder.parent.stat()
    inherits = bool(parent.st_mode & stat.S_ISGID)
    mode = stat.S_IMODE(new.stat().st_mode) & ~stat.S_ISGID
    with suppress(OSError):  # the user may not belong to the group
        os.chown(new, -1, parent.st_gid if inherits or sys.platform == "darwin" else os.getegid())
    new.chmod(mode | stat.S_ISGID * inherits)
    default = "system.posix_acl_default"
    if sys.platform == "linux" and default in _access_lists(folder.parent):
        with suppress(OSError):
            for name in (default, "system.posix_acl_access"):
                os.setxattr(new, name, os.getxattr(folder.parent, default))


def _keep_permissions(old: Path, new: Path) -> None:
    linked = old.is_symlink() or new.is_symlink()
    if os.name == "posix" and old.exists() and not linked and not new.samefile(old):
        _copy_permissions(old, new)


def _copy_permissions(source: Path, target: Path) -> None:
    """Copy group, owner, access control list, and last the mode, whose bits a new owner clears."""
    status = source.stat()
    for owner, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with suppress(OSError):  # only root may change a file's owner
            os.chown(target, owner, group)
    if sys.platform == "linux":
        for name in _access_lists(source):
            with suppress(OSError):  # target's file system may not support lists
                os.setxattr(target, name, os.getxattr(source, name))
    target.chmod(stat.S_IMODE(status.st_mode))


def _access_lists(path: Path) -> list[str]:
    """Names of the extended attributes that are access control lists."""
    with suppress(OSError):  # the file system may not support access lists
        if sys.platform == "linux":
            return [name for name in os.listxattr(path) if name.startswith("system.")]
    return []


def _write_through(folder: Path) -> None:
    """Write the files from memory to the disk, so that they survive if the machine stops."""
    for path in (*folder.rglob("*"), folder) if os.name == "posix" else ():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_movable(new: Path, old: Path) -> bool:
    # Other processes may use subfolders of the old folder, unless the save writes subfolders.
    nested = {one: any(path.is_dir() for path in one.iterdir()) for one in (new, old)}
    owned = nested[new] or not nested[old]
    return owned and not old.is_mount() and not Path.cwd().is_relative_to(old)


def _exchange_keeping_others(new: Path, old: Path) -> bool:
    for path in [path for path in old.iterdir() if not (new / path.name).exists()]:
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, new / path.name)
    for path in (*new.rglob("*"), new):
        _keep_permissions(old / path.relative_to(new), path)
    return _exchange(new, old)


def _link(path: str | Path, link: str | Path) -> None:
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError:  # the file system may not support hard links
        shutil.copy2(path, link, follow_symlinks=False)


def _replace_one_by_one(new: Path, old: Path) -> None:
    new.chmod(0o700)  # a failed exchange may have made the folder unwritable
    for path in sorted(new.rglob("*")):
        place = old / path.relative_to(new)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            _keep_permissions(place, path)
            path.replace(place)


def _exchange(new: Path, old: Path) -> bool:
    """Let two folders change places in one step. Returns False if the system cannot."""
    paths = os.fsencode(new), os.fsencode(old)
    swap = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
        here = -100  # AT_FDCWD
        return rename is not None and rename(here, paths[0], here, paths[1], swap) == 0
    if sys.platform == "darwin":
        return ctypes.CDLL(None).renamex_np(*paths, swap) == 0
    return False
