"""Text read stage by stage; an interrupted run goes on where it was."""

from collections.abc import Callable

from tqdm import tqdm

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.progress import SavedProgress, interrupts_noted
from sae_binary_ext.measure.reading import OpenedModel


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
            description: for the progress bar.
            tokens: how many to read at least; the last batch is finished.
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
