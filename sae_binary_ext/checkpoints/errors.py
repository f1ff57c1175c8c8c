"""The error that is raised if a coder cannot be read, converted or published."""


class CheckpointError(ValueError):
    """A file, folder or repository is unusable, or a format cannot store its coder."""
