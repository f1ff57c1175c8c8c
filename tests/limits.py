"""Limits that a test puts on its own process."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than half a gigabyte on top of what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**29):
        yield


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file grows above so many bytes: writing fails as on a full disk."""
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
    """Rights as anyone has them: those of files do not hold root back."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
