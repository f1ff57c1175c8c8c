"""A file of records, one in each line, in which an interrupted run finds what it has done."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

Record = TypeVar("Record", bound=Any)
logger = logging.getLogger(__name__)


class SavedRecords(Generic[Record]):
    """A file of records, each a dataclass of numbers and strings.

    Args:
        path: the file. Its folder must exist.
        of: fingerprint of all that the records depend on. Records of another fingerprint are
            dropped.
        kind: the dataclass.
        key: fields that identify a record, at least two.
    """

    def __init__(self, path: Path, of: str, kind: type[Record], key: tuple[str, ...]) -> None:
        self._path, self._key, header = path, attrgetter(*key), json.dumps({"of": of}) + "\n"
        lines = whole_lines(path) if path.is_file() else []
        if lines[:1] != [header]:
            if lines:
                logger.info("%s holds scores of another run, and starts anew.", path)
            lines = [header]
            path.write_text(header)
        found = (kind(**json.loads(line)) for line in lines[1:])
        self._by_key = {self._key(record): record for record in found}

    @property
    def records(self) -> list[Record]:
        """All records, in the order of the file."""
        return list(self._by_key.values())

    def has(self, *key: Any) -> bool:
        """Whether the file has a record with this key."""
        return key in self._by_key

    def add(self, records: Iterable[Record]) -> None:
        """Write the records that the file does not have yet, one by one as they come."""
        with self._path.open("a") as file:
            for record in records:
                if self._key(record) not in self._by_key:
                    file.write(json.dumps(asdict(record)) + "\n")
                    file.flush()
                    self._by_key[self._key(record)] = record


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, with line ends. A half-written last line is removed from the file."""
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return whole
