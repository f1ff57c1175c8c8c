"""The settings of `sae-binary entropy-check`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least

BATCH = 512  # states of a training step


@dataclass
class EntropyCheckConfig:
    """Train coders on states of known entropy, and compare the entropy of their codes with it."""

    output: Path = Path("runs/entropy-check")
    """Folder for entropy-check.json and entropy-check.html."""
    directions: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Numbers of random directions that a state is a sum of."""
    dimensions: list[int] = field(default_factory=lambda: [128, 576])
    """Dimensions of a state."""
    variant_directions: list[int] = field(default_factory=lambda: [8, 32])
    """Numbers of directions for unequal rates, pairs and noise, in the first of the dimensions."""
    training_states: int = 150_000
    """States to train each coder on in each of four rounds, before latents that do not pay are
    removed. Twice as many if there are more than 32 directions."""
    starts: int = 2
    """Coders trained on each kind of states. The one with the lowest training loss is measured."""
    measured_states: int = 50_000
    """States to measure on."""
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
