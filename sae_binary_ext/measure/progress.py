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

# Version of the saved counts; those of another version are not used.
LAYOUT = 2
logger = logging.getLogger(__name__)

# A save writes tens of megabytes.
SECONDS_BETWEEN_SAVES = 30.0


def fingerprint(candidates: Iterable[Candidate], settings: Any, sources: Iterable[str]) -> str:
    """A hash of a comparison: the coders' files, settings (a dataclass), model and text.

    `sources` names the model and the text; sizes and times count for their files.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, asdict(settings)], default=str).encode())
    for source in sources:
        digest.update(source.encode())
        path = Path(source)
        for file in sorted([path, *path.rglob("*")] if path.exists() else []):
            digest.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    for candidate in candidates:
        digest.update(f"{candidate.name} {candidate.site}".encode())
        for file in sorted(path for path in candidate.folder.iterdir() if path.is_file()):
            # Written beside a coder after a comparison; the coder is the same.
            if file.name == METRICS_FILE:
                continue
            with file.open("rb") as contents:
                digest.update(hashlib.file_digest(contents, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def interrupts_noted() -> Generator[Callable[[], bool]]:
    """Only note the first Ctrl-C, so that no batch is counted by half; yields whether it came.

    A second Ctrl-C raises KeyboardInterrupt at once. It does not call the previous handler, because
    SAELens' training runner leaves its own behind. Nothing changes outside the main thread, or if
    interrupts are ignored.
    """
    handled = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(handled):
        yield lambda: False
        return
    came = threading.Event()

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
    """Saves a module's counts in a file, and how many batches of each stage are in them.

    Counts in the file are loaded if they have the same fingerprint `of` the comparison.
    """

    def __init__(self, path: Path, of: str, counts: nn.Module) -> None:
        self._path, self._of, self._counts = path, of, counts
        self._done: dict[str, int] = {}
        self._saved_at = time.monotonic()
        if path.is_file():
            self._take_up()

    def done(self, stage: str) -> int:
        """Batches of a stage counted so far."""
        return self._done.get(stage, 0)

    def advance(self, stage: str) -> None:
        """Note that one more batch of a stage was counted, and save now and then."""
        self._done[stage] = self.done(stage) + 1
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the file, all at once."""
        unfinished = self._path.with_suffix(".unfinished")
        metadata = {"of": self._of, "done": json.dumps(self._done)}
        save_file(self._counts.state_dict(), unfinished, metadata=metadata)
        unfinished.replace(self._path)
        self._saved_at = time.monotonic()

    def _take_up(self) -> None:
        with safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("of") != self._of:
                logger.info("%s is of another comparison, and starts anew.", self._path)
                return
            self._counts.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        self._done = json.loads(metadata["done"])
        logger.info("Going on after %s batches, from %s", self._done, self._path)


class TextStream:
    """Batches of a text; those used before an interruption are skipped.

    Args:
        opened: gives the text, and cuts it into rows.
        saved: holds what earlier runs counted.
    """

    def __init__(self, opened: OpenedModel, saved: SavedProgress) -> None:
        self._opened, self._saved = opened, saved

    def go_on(
        self, stage: str, description: str, tokens: int, use: Callable[[TextBatch], None]
    ) -> None:
        """Use those batches of a stage that were not used before.

        Args:
            stage: its name in the file of progress.
            description: text of the progress bar.
            tokens: least number of tokens to read; the last batch is finished.
            use: counts one batch.

        Raises:
            KeyboardInterrupt: Ctrl-C, once the batch is counted and all is saved.
            ValueError: there is no text.
        """
        done = self._saved.done(stage)
        with (
            tqdm(total=tokens, desc=description, unit="tokens", unit_scale=True) as progress,
            interrupts_noted() as interrupted,
        ):
            for number, (batch, size) in enumerate(self._opened.batches(tokens)):
                if number >= done:
                    use(batch)
                    self._saved.advance(stage)
                progress.update(size)
                if interrupted():
                    self._saved.save()
                    raise KeyboardInterrupt
        if not self._saved.done(stage):
            raise ValueError("dataset: holds no text to measure on.")
        self._saved.save()
