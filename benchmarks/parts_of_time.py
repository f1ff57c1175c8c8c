"""Splits the time of a run into parts, by wrapping public methods while it runs."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
REST = "the rest"


class PartsOfTime:
    """Seconds of each part. Time within a part that another part takes counts for the other alone.

    All parts run in one thread. `clock` gives the time in seconds: that of the wall, or for a
    machine with other work time.process_time, the processor's seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Count the time of the block for a part."""
        self._count()
        self._stack.append(name)
        try:
            yield
        finally:
            self._count()
            self._stack.pop()

    def _count(self) -> None:
        now = self._clock()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def wrapped(self, name: str, *methods: tuple[Any, str]) -> Generator[None]:
        """Within the block, count calls of methods, each given as (class or object, its name)."""
        own = [(owner, method, owner.__dict__.get(method)) for owner, method in methods]
        for owner, method in methods:
            setattr(owner, method, self._counted(name, getattr(owner, method)))
        try:
            yield
        finally:
            for owner, method, before in own:
                if before is None:
                    delattr(owner, method)
                else:
                    setattr(owner, method, before)

    def _counted(self, name: str, method: Callable[..., T]) -> Callable[..., T]:
        @wraps(method)
        def counted(*arguments: Any, **named: Any) -> T:
            with self.part(name):
                return method(*arguments, **named)

        return counted

    def iterating(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """The same items; the time to make each one counts for a part."""
        while True:
            with self.part(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
