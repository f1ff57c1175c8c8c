"""The settings of `sae-binary demo`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least

# Position 0 is an attention sink, whose norm is several times that of any other token. No coder is
# trained or measured on position 0, and splicing does not replace it.
FIRST_POSITION = 1


@dataclass
class DemoConfig:
    """Train binary and stock coders on SmolLM2 and compare them.

    With the defaults, the demo took 12 minutes on two slow cores, with installation. Two epochs
    with batches of 1024 have the same number of steps, take twice the training time, and give
    slightly better reconstruction.
    """

    output: Path = Path("runs/demo")
    """Folder for the activations, the coders, metrics.json and report.html."""
    layer: int = 9
    """Layer of SmolLM2, 0 to 29. Coders are trained on the residual stream that enters it."""
    training_tokens: int = 300_000
    """How many tokens to train on. Each one is read `epochs` times."""
    held_out_tokens: int = 30_600
    """How many tokens of other articles to measure the figures of the table on."""
    spliced_tokens: int = 4_000
    """How many held-out tokens run through the model with each coder's output in place."""
    epochs: int = 1
    """How many times to train on all training tokens."""
    k: int = 32
    """Most active latents per token of the topk coders."""
    expansion: int = 8
    """Latents per dimension of the model. The entropy coders get half as many."""
    batch_size: int = 512
    """Tokens in a training step."""
    context_size: int = 256
    """Tokens in a row, with the beginning-of-text token at position 0."""
    seed: int = 0
    """Seed of the weights and of the order of the tokens."""

    def __post_init__(self) -> None:
        tokens = ("training_tokens", "held_out_tokens", "spliced_tokens", "batch_size")
        check_at_least(1, **{name: getattr(self, name) for name in (*tokens, "epochs", "k")})
        if self.expansion < 2 or self.expansion % 2:
            raise ValueError(
                f"expansion={self.expansion}: give an even number, which the entropy coders halve."
            )
        if not 2 <= self.context_size <= 8192:
            raise ValueError(f"context_size={self.context_size}: SmolLM2 takes 2 to 8192 tokens.")
        if self.batch_size > self.training_tokens:
            raise ValueError(
                f"batch_size={self.batch_size}: more than training_tokens={self.training_tokens}. "
                f"Give at most {self.training_tokens}."
            )

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook that the coders read."""
        return f"blocks.{self.layer}.hook_resid_pre"
