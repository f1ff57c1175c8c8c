"""The settings of `sae-binary entropy-profile`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ReadingConfig

DEFAULT_LAYERS = {"layers": list(range(0, 30, 3)), "positions": [6, 18]}
ALONG = ("layers", "positions")
PROMPTS = ("text", "in_context")
BATCH = 256  # tokens of a training step


@dataclass
class EntropyProfileConfig(ReadingConfig):
    """
    The entropy of a model's hidden states along its layers, or along the positions of a text or
    the examples of a prompt, each point by a coder trained for it.
    """

    output: Path = Path("runs/entropy-profile")
    """Folder for entropy-profile.json and entropy-profile.html."""
    along: str = "layers"
    """layers (of all positions together), or positions (of each of the layers)."""
    prompts: str = "text"
    """text, or in_context (lines "word -> answer" of a simple task; positions are then the number
    of examples before the answer). Only with along=positions."""
    layers: list[int] = field(default_factory=list)
    """Whose incoming residual stream is coded; every third if left out, or 6 and 18 along
    positions."""
    tokens: int = 100_000
    """Tokens to read; of prompts, one for each row of so many."""
    context_size: int = 64
    """Tokens a row."""
    states: int = 20_000
    """Hidden states a point, at most."""
    latents: int = 1152
    """Width of each coder."""
    entropy_coefficient: float = 4e-4
    """FVU that a bit is worth."""
    training_states: int = 200_000
    """States that each coder sees, the same ones again and again."""
    seed: int = 0
    """Of weights, of the order of states, and of prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(ALONG, along=self.along)
        check_choice(PROMPTS, prompts=self.prompts)
        if self.prompts == "in_context" and self.along != "positions":
            raise ValueError("prompts='in_context': needs along='positions'. Set both.")
        check_at_least(100, states=self.states)
        check_at_least(8, latents=self.latents)
        check_at_least(BATCH, training_states=self.training_states)
        self.layers = self.layers or DEFAULT_LAYERS[self.along]
