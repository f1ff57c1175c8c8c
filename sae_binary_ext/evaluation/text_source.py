"""Which texts are read; imports no host, for settings to name it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSource:
    """Texts by where they are.

    Attributes:
        dataset: a Hub dataset's id, a file (.txt, each one document, .parquet, .json, .jsonl,
            .csv), a folder of such files or one written by datasets' save_to_disk; None for
            articles of the embedded Wikipedia sample.
        split: of the dataset; None takes train, or the only one of a folder of save_to_disk.
        text_column: which holds the texts; None takes text, or the only column of strings.
    """

    dataset: str | None
    split: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is None and (self.split, self.text_column) != (None, None):
            raise ValueError(
                f"split={self.split!r}, text_column={self.text_column!r}: the embedded articles "
                "have neither. Name a dataset too."
            )

    def names(self, embedded: str) -> tuple[str, ...]:
        """What tells it from other sources; embedded names the articles of the sample."""
        chosen = {"split": self.split, "text_column": self.text_column}
        more = tuple(f"{key}={value}" for key, value in chosen.items() if value is not None)
        return (self.dataset or embedded, *more)
