"""The settings of `sae-binary entropy-check`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least

# Tokens of a training step.
BATCH = 512


@dataclass
class EntropyCheckConfig:
    """
    Train coders on synthetic hidden states of known entropy, and compare the entropy of their
    codes with it.
    """

    output: Path = Path("runs/entropy-check")
    """Folder for entropy-check.json and entropy-check.html."""
    directions: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """How many random directions a state is a sum of."""
    dimensions: list[int] = field(default_factory=lambda: [128, 576])
    """Of a state."""
    variant_directions: list[int] = field(default_factory=lambda: [8, 32])
    """The same for unequal rates, correlated pairs and noise, in the first of the dimensions."""
    training_states: int = 150_000
    """States to train each coder on before latents that do not pay are removed, four times over;
    twice as many where there are more than 32 directions."""
    starts: int = 2
    """Coders trained of each kind of states; the one of the lowest loss in training is measured."""
    measured_states: int = 50_000
    """States to measure on."""
    seed: int = 0
    """Of directions, states and weights."""

    def __post_init__(self) -> None:
        for name in ("directions", "dimensions"):
            values = getattr(self, name)
            if not values or min(values) < 2:
                raise ValueError(f"{name}={values}: give numbers of at least 2.")
        for name in ("directions", "variant_directions"):
            values = getattr(self, name)
            if values and max(values) > min(self.dimensions):
                raise ValueError(
                    f"{name}={values}: more than dimensions={self.dimensions}, and so not told "
                    "apart by any linear encoder. Give at most as many."
                )
        check_at_least(BATCH, training_states=self.training_states)
        check_at_least(2, measured_states=self.measured_states)
        check_at_least(1, starts=self.starts)
