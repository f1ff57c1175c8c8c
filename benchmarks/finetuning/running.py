"""Fine-tunes the coders of one kind together, and measures them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetuning.coders import LAYERS, activations, folders_of
from benchmarks.paper1.running import figures_of
from benchmarks.result_lines import Line
from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands import FinetuneConfig, run_finetune
from sae_binary_ext.report.tables import as_json

# Tokens of a run of the search, of the longer run, and of held-out documents.
SEARCH_TOKENS, TOKENS, HELD_OUT_TOKENS = 10_200, 102_000, 10_000
BATCH_ROWS = 2
# Training tokens on which bits by MDL are measured.
MDL_TOKENS = 10_200
# The search goes by the batches of this share of the steps, the last ones. No row is read twice, so
# a batch is new to the coders when its loss is measured.
LAST_SHARE = 1 / 3
COUNTED = ("bits_before", "bits_after", "fvu_before", "fvu_after", "dead_before", "dead_after")


@dataclass(frozen=True)
class Run:
    """Coders of one kind to fine-tune together.

    Attributes:
        kind: one of KINDS.
        lr: the learning rate.
        parameters: names of the parameters that train; all if empty.
        tokens: tokens to train on.
    """

    kind: str
    lr: float
    parameters: tuple[str, ...]
    tokens: int

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return asdict(self) | {"parameters": list(self.parameters)}

    @property
    def is_final(self) -> bool:
        """Whether the coders are also measured on held-out documents."""
        return self.tokens == TOKENS

    @property
    def name(self) -> str:
        """A name for the run's folder."""
        return "-".join([self.kind, f"lr{self.lr:g}", *self.parameters, str(self.tokens)])


def make(folder: Path, run: Run) -> Line:
    """Fine-tune the coders of a run, which are in `folder`; a line of the file of results."""
    config = FinetuneConfig(
        model=str(export_smollm2(folder / "model")),
        output=folder / run.name,
        tokens=run.tokens,
        # A search looks at no held-out text; the command reads at least one row.
        held_out_tokens=HELD_OUT_TOKENS if run.is_final else 1,
        lr=run.lr,
        parameters=list(run.parameters),
        batch_rows=BATCH_ROWS,
        device="cpu",
    )
    results = as_json(run_finetune(list(map(str, folders_of(folder, run.kind))), config).results)
    steps = results["training"]
    last = steps[-max(round(LAST_SHARE * len(steps)), 1) :]
    line = run.key() | {"last_divergence": sum(each["divergence"] for each in last) / len(last)}
    if run.is_final:
        line |= {
            "predictions": results["predictions"],
            "losses": results["losses"],
            "coders": [
                {name: each[name] for name in ("site", *COUNTED)} for each in results["coders"]
            ],
            "mdl_bits_before": mdl_bits(folder, folders_of(folder, run.kind)),
            "mdl_bits_after": mdl_bits(
                folder, [Path(each["folder"]) for each in results["coders"]]
            ),
        }
    return line


def mdl_bits(folder: Path, coders: list[Path]) -> float:
    """Bits a token of coders of LAYERS, their sum, by MDL, on some tokens of training."""
    states = activations(folder)
    bits = 0.0
    for layer, saved in zip(LAYERS, coders, strict=True):
        own = states[str(layer)][:MDL_TOKENS].float()
        bits += figures_of(load_coder(saved), own, own)["mdl_bits"]
    return bits
