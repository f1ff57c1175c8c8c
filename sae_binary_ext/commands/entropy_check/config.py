"""The settings of `sae-binary entropy-check`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least

BATCH = 512  # number of states in a training step


@dataclass
class EntropyCheckConfig:
    """Train coders on states of known entropy; compare that entropy with the codes' entropy."""

    output: Path = Path("runs/entropy-check")
    """Folder for entropy-check.json and entropy-check.html."""
    directions: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Numbers of random directions. A state is the sum of some of them. Each number is one case."""
    dimensions: list[int] = field(default_factory=lambda: [128, 576])
    """Numbers of dimensions of a state. Each number is combined with each of directions."""
    variant_directions: list[int] = field(default_factory=lambda: [8, 32])
    """Numbers of directions for unequal rates, pairs and noise, all in the first of dimensions."""
    training_states: int = 150_000
    """States to train each coder on in each of four rounds. Latents that do not pay are removed
    after each round. If there are more than 32 directions, it is twice as many."""
    starts: int = 2
    """How many coders to train on each kind of states. The one of the lowest loss is measured."""
    measured_states: int = 50_000
    """How many states to measure on."""
    seed: int = 0
    """Seed of directions, states and weights."""

    def __post_init__(self) -> None:
        for name in ("directions", "dimensions"):
            values = getattr(self, name)
            if not values or min(values) < 2:
                raise ValueError(f"{name}={values}: give numbers of at least 2.")
        for name in ("directions", "variant_directions"):
            values = getattr(self, name)
            if values and max(values) > min(self.dimensions):
                raise ValueError(
                    f"{name}={values}: more directions than dimensions={self.dimensions}, which no "
                    "linear encoder can tell apart. Give at most as many."
                )
        check_at_least(BATCH, training_states=self.training_states)
        check_at_least(2, measured_states=self.measured_states)
        check_at_least(1, starts=self.starts)
