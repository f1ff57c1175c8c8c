"""Limits that a test sets for its own process."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def little_memory() -> Iterator[None]:
    """The process can allocate at most half a gigabyte more than it has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**29):
        yield


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Files cannot grow above this size in bytes. Writing more fails as on a full disk."""
    with _limited(resource.RLIMIT_FSIZE, size):
        yield


@contextmanager
def _limited(what: int, limit: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextmanager
def not_root() -> Iterator[None]:
    """If the user is root, act as another user, because file permissions do not stop root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
