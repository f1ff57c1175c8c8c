"""Counts saved in a file, so that a run goes on after an interruption."""

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from sae_binary_ext.checkpoints.sources import METRICS_FILE
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.reading import OpenedModel

logger = logging.getLogger(__name__)
# Version of the saved counts; those of another version are not used.
LAYOUT = 2
# A save writes tens of megabytes.
SECONDS_BETWEEN_SAVES = 30.0
UseBatch = Callable[[TextBatch], None]


def fingerprint(candidates: Iterable[Candidate], settings: Any, sources: Iterable[str]) -> str:
    """A hash of the coders' files, the settings (a dataclass), and the sources' sizes and times."""
    digest = hashlib.sha256(json.dumps([LAYOUT, asdict(settings)], default=str).encode())
    for source in sources:
        digest.update(source.encode())
        path = Path(source)
        for file in sorted([path, *path.rglob("*")] if path.exists() else []):
            digest.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    for candidate in candidates:
        digest.update(f"{candidate.name} {candidate.site}".encode())
        # A comparison writes METRICS_FILE beside a coder, which stays the same.
        for file in sorted(candidate.folder.iterdir()):
            if file.is_file() and file.name != METRICS_FILE:
                with file.open("rb") as contents:
                    digest.update(hashlib.file_digest(contents, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def interrupts_noted() -> Generator[Callable[[], bool]]:
    """Only note the first Ctrl-C, so that no batch is counted by half; yields whether it came.

    A second one raises KeyboardInterrupt at once. The previous handler is not called, because
    SAELens' training runner leaves its own behind.
    """
    handled, came = signal.getsignal(signal.SIGINT), threading.Event()
    # Other threads cannot handle interrupts. Interrupts that are ignored stay so.
    if threading.current_thread() is not threading.main_thread() or not callable(handled):
        yield came.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            signal.default_int_handler(number, frame)
        came.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, handled)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, with their ends; half a line of a killed process is removed from it."""
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return whole


class SavedProgress:
    """Counts in a file, and how many batches of each stage are in them.

    The module `counts` takes those of the file if they have the same fingerprint `of` the run.
    """

    def __init__(self, opened: OpenedModel, path: Path, of: str, counts: nn.Module) -> None:
        self._opened, self._path, self._of, self._counts = opened, path, of, counts
        self._done: dict[str, int] = {}
        self._saved_at = time.monotonic()
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("of") != of:
                logger.info("%s is of another comparison, and starts anew.", path)
                return
            counts.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        self._done = json.loads(metadata["done"])
        logger.info("Going on after %s batches, from %s", self._done, path)

    def go_on(self, stage: str, description: str, tokens: int, use: UseBatch) -> None:
        """Use the batches of a stage, `tokens` at least, that were not used before an interruption.

        KeyboardInterrupt comes once the batch is counted and saved. ValueError without text.
        """
        done = self._done.setdefault(stage, 0)
        with (
            tqdm(total=tokens, desc=description, unit="tokens", unit_scale=True) as progress,
            interrupts_noted() as interrupted,
        ):
            for number, (batch, size) in enumerate(self._opened.batches(tokens)):
                if number >= done:
                    use(batch)
                    self._done[stage] += 1
                    if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
                        self._save()
                progress.update(size)
                if interrupted():
                    self._save()
                    raise KeyboardInterrupt
        if not self._done[stage]:
            raise ValueError("dataset: holds no text to measure on.")
        self._save()

    def _save(self) -> None:
        unfinished = self._path.with_suffix(".unfinished")
        metadata = {"of": self._of, "done": json.dumps(self._done)}
        save_file(self._counts.state_dict(), unfinished, metadata=metadata)
        unfinished.replace(self._path)
        self._saved_at = time.monotonic()
