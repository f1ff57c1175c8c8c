"""The demo's knobs, in one place: the command line and the pipeline read them here."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least

# Position 0 is an attention sink whose norm is several times every other's; it is left out of
# training and evaluation, and left as it is when a reconstruction is spliced into the model.
FIRST_POSITION = 1


@dataclass
class DemoConfig:
    """Train binary and stock coders on SmolLM2 and compare them.

    The defaults took 12 minutes on two slow cores, installation included. Two epochs of batches
    of 1024 take as many steps, twice the training time, and reconstruct a little better.
    """

    output: Path = Path("runs/demo")
    """Folder for the activations, the coders, metrics.json and report.html."""
    layer: int = 9
    """Layer of SmolLM2 (0 to 29) whose incoming residual stream is coded."""
    training_tokens: int = 300_000
    """Tokens to train on, each seen `epochs` times."""
    held_out_tokens: int = 30_600
    """Tokens, from articles not trained on, that every figure of the table is measured on."""
    spliced_tokens: int = 4_000
    """Held-out tokens on which the cross-entropy with spliced reconstructions is measured."""
    epochs: int = 1
    """Passes over the training tokens."""
    k: int = 32
    """Active latents a token, at most, of the topk coders."""
    expansion: int = 8
    """Latents per dimension of the model; the entropy coders have half as many."""
    batch_size: int = 512
    """Tokens a training step."""
    context_size: int = 256
    """Tokens a row, the beginning-of-sequence token at position 0 included."""
    seed: int = 0
    """Seed of the weights and of the order of the tokens."""

    def __post_init__(self) -> None:
        check_at_least(
            1,
            training_tokens=self.training_tokens,
            held_out_tokens=self.held_out_tokens,
            spliced_tokens=self.spliced_tokens,
            epochs=self.epochs,
            k=self.k,
            batch_size=self.batch_size,
        )
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
        """Where the coders attach, in TransformerLens' words."""
        return f"blocks.{self.layer}.hook_resid_pre"
