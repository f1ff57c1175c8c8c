"""The settings of `sae-binary finetune`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice, check_positive
from sae_binary_ext.settings import ReadingConfig

# Names of the losses, and of the figure that each minimises.
LOSSES = {"kl": "divergence", "ce": "spliced"}


@dataclass
class FinetuneConfig(ReadingConfig):
    """Train coders of one model together, all spliced in, on what the model predicts."""

    output: Path = Path("runs/finetune")
    """Folder for the coders (in coders/), finetune.json, finetune.html and the state of an
    interrupted run."""
    tokens: int = 100_000
    """How many tokens to train on. Every tenth document of the text is held out."""
    held_out_tokens: int = 20_000
    """How many tokens of the documents held out to measure on, before and after. They come from ten
    documents or more, if the text has as many."""
    dataset: str | None = None
    """Texts: a Hub id, a file (.txt, .parquet, .json, .jsonl, .csv) or a folder of such files. If
    left out, the bundled Wikipedia sample, whose articles held out are those of the demo."""
    loss: str = "kl"
    """kl: divergence of the next-token distributions of the model with coders from those without.
    ce: cross-entropy of the next token."""
    lr: float = 1e-2
    """Learning rate of Adam: the share of its size by which a weight moves in a step. It rises
    over the first twentieth of the steps, and then falls to 0."""
    batch_rows: int = 4
    """Rows of text in a training step, each of up to context_size tokens."""
    seed: int = 0
    """Seed of the order of the rows."""
    parameters: list[str] = field(default_factory=list)
    """Parameters to train, by their names in SAELens (W_enc b_enc log_threshold W_dec b_dec
    W_skip). If left out: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(LOSSES, loss=self.loss)
        check_positive(lr=self.lr)
        check_at_least(1, held_out_tokens=self.held_out_tokens, batch_rows=self.batch_rows)
