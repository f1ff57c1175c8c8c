"""The settings of `sae-binary entropy-profile`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ActivationsFields, ReadingConfig

DEFAULT_LAYERS = {"layers": list(range(0, 30, 3)), "positions": [6, 18]}
ALONG = ("layers", "positions")
PROMPTS = ("text", "in_context")
BATCH = 256  # number of tokens in a training step


@dataclass
class EntropyProfileConfig(ActivationsFields, ReadingConfig):
    """Train a coder for each layer or position, and measure the entropy of hidden states there."""

    output: Path = Path("runs/entropy-profile")
    """Folder for entropy-profile.json and entropy-profile.html."""
    along: str = "layers"
    """layers trains a coder for each layer; positions trains one for each position of a layer."""
    prompts: str = "text"
    """text, or in_context: prompts of lines "word -> answer" of a simple task. Then there is a
    coder for each number of examples before the answer. in_context needs along=positions."""
    layers: list[int] = field(default_factory=list)
    """Layers whose incoming residual stream is coded. If left out: every third layer, or layers 6
    and 18 with along=positions."""
    tokens: int = 100_000
    """How many tokens to read. in_context makes one prompt for each context_size tokens."""
    context_size: int = 64
    """Tokens per row of text."""
    states: int = 20_000
    """Most hidden states to keep for each coder."""
    latents: int = 1152
    """Width of each coder."""
    entropy_coefficient: float = 4e-4
    """Price of a bit, in FVU. A higher price gives fewer bits."""
    training_states: int = 200_000
    """How many states each coder sees in training. Its states are repeated as often as needed."""
    seed: int = 0
    """Seed of weights, of the order of states, and of prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(ALONG, along=self.along)
        check_choice(PROMPTS, prompts=self.prompts)
        if self.prompts == "in_context" and self.along != "positions":
            raise ValueError("prompts='in_context': needs along='positions'. Set both.")
        if self.prompts == "in_context" and self.activations is not None:
            raise ValueError(
                f"activations={self.activations}: is of a text, and prompts='in_context' makes "
                "prompts. Leave activations out, or set prompts='text'."
            )
        check_at_least(100, states=self.states)
        check_at_least(8, latents=self.latents)
        check_at_least(BATCH, training_states=self.training_states)
        self.layers = self.layers or DEFAULT_LAYERS[self.along]
