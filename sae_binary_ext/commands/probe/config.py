"""The settings of `sae-binary probe`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.settings import AUTO, ActivationsFields, ReadingConfig

# Numbers of latents that a probe may use, besides all of them.
LATENTS = (1, 2, 5, 16)


@dataclass
class ProbeConfig(ActivationsFields, ReadingConfig):
    """
    Tell labels of texts from a few latents, by tasks, splits and probes of sae-probes. Stock coders
    are probed twice: by their values, and by which latents are active. Needs the extra probe. After
    Ctrl-C, the same command continues where it stopped.
    """

    output: Path = Path("runs/probe")
    """Folder for probe.json, probe.html, and the files of an interrupted run. Its activations/ has
    the model's states, which a later run with other coders at the same hooks reads again."""
    tokens: int = 20_000
    """How many tokens of the text to count each coder's bits on. Tasks have texts of their own."""
    context_size: int = 128
    """Most tokens in a row. A task's text that is longer keeps its last tokens; sae-probes keeps
    1024."""
    tasks: int = 20
    """How many of the 113 tasks to take, evenly spaced in the order of sae-probes."""
    names: list[str] = field(default_factory=list)
    """Names of tasks, such as 107_hate_offensive, to take instead of evenly spaced ones."""
    test_examples: int = 500
    """Most examples of a task to test on. sae-probes tests on all examples that are left."""
    precision: str = AUTO
    """Number format of the model's products of matrices: float32, or bfloat16, which is almost
    twice as fast on a CPU with instructions for it. auto takes bfloat16 on such a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, tasks=self.tasks, test_examples=self.test_examples)
