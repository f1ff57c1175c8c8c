"""The one error of reading, converting and publishing coders."""


class CheckpointError(ValueError):
    """A file, folder or repository is not what it should be, or cannot be told in a format."""
