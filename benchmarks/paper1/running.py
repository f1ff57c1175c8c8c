"""Trains and measures one coder of the grid."""

import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETransformerBridge
from torch import Tensor

from benchmarks.paper1.cases import Case, site
from benchmarks.paper1.training import train
from benchmarks.reconstruction.activations import load, read_rows
from sae_binary_ext.commands.demo.config import FIRST_POSITION
from sae_binary_ext.measure import measure, value_bits
from sae_binary_ext.saelens.splice import Splice, resolve_hook
from sae_binary_ext.saving import replacing

SPLICED_ROWS, ROWS_PER_FORWARD = 16, 4
VALUE_TOKENS = 10_000


def one_thread() -> None:
    """Prepare a process that trains coders."""
    torch.set_num_threads(1)


def make(folder: Path, case: Case) -> dict[str, Any]:
    """Train and measure one coder; a line of the file of results. Its files stay in `folder`."""
    split = load(folder, site(case.layer))
    started = time.perf_counter()
    coder = train_and_save(folder, case, split.train)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    figures = {
        **case.key(),
        "choosing": {"fvu": measure(coder, *pair_of(split.choosing, case.form)).fvu},
        "held_out": figures_of(coder, *pair_of(split.held_out_articles, case.form)),
        "in_model": in_model(folder, case).predictions(coder),
    }
    measuring = time.perf_counter() - started
    return {**figures, "seconds": round(seconds), "measuring_seconds": round(measuring)}


def train_and_save(folder: Path, case: Case, pairs: Tensor) -> SAE[Any]:
    """Train a coder, and save it in `folder`; the inference coder.

    pairs: [tokens, 2 * width], inputs and outputs of the MLP.
    """
    with tempfile.TemporaryDirectory() as saved:
        coder = train(case, pairs, Path(saved))
        # The Trainer's other files are the state of its optimizer.
        own = Path(saved, case.name, case.hookpoint)
        with replacing(case.folder(folder)) as new:
            shutil.copytree(own, new, dirs_exist_ok=True)
    return coder


def ensure_saved(folder: Path, cases: list[Case]) -> None:
    """Train again the coders whose figures are known and whose files are not in `folder`."""
    for case in cases:
        if not case.folder(folder).is_dir():
            train_and_save(folder, case, load(folder, site(case.layer)).train)


def pair_of(pairs: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a coder, float32, from a layer's activations side by side."""
    inputs, outputs = pairs.float().chunk(2, dim=-1)
    return (outputs, outputs) if form == "autoencoder" else (inputs, outputs)


def figures_of(coder: SAE[Any], inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Reconstruction, firing, and bits a token by both counts (8 bits a value, and MDL)."""
    found = measure(coder, inputs, targets)
    values = value_bits(coder, inputs[:VALUE_TOKENS], targets[:VALUE_TOKENS])
    stored = 8 * found.l0 if values else 0.0
    return {
        "fvu": found.fvu,
        "l0": found.l0,
        "dead": found.dead,
        "dense": found.dense_10,
        "ultra_high": found.dense_50,
        "bits": found.entropy_bits + stored,
        "mdl_bits": found.entropy_bits + values,
    }


class InModel:
    """The model's predictions on held-out text, with a coder's output in an activation's place.

    Args:
        folder: has the model.
        hooks: the hook that coders read, and the hook that is replaced.
        rows: int64 [rows, context], token ids.
    """

    def __init__(self, folder: Path, hooks: tuple[str, str], rows: Tensor) -> None:
        model = SAETransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
        source, target = (resolve_hook(model, "hook", hook) for hook in hooks)
        self._splice, self._rows = Splice(model, source, target), rows
        self.clean = self._mean(lambda _, target: target)
        self.zeroed = self._mean(lambda _, target: torch.zeros_like(target))

    def predictions(self, coder: SAE[Any]) -> dict[str, float]:
        """Cross-entropy and accuracy of the next token, and the share of either recovered.

        The share is 1 for the unchanged model, and 0 if zeros replace the activation.
        """
        spliced = self._mean(lambda source, _: coder(source))
        cross_entropy, accuracy = (
            (own - zeroed) / (clean - zeroed)
            for own, zeroed, clean in zip(spliced, self.zeroed, self.clean, strict=True)
        )
        return {
            "cross_entropy": spliced[0],
            "accuracy": spliced[1],
            "clean_cross_entropy": self.clean[0],
            "clean_accuracy": self.clean[1],
            "cross_entropy_recovered": cross_entropy,
            "accuracy_recovered": accuracy,
        }

    def _mean(self, replacement: Any) -> tuple[float, float]:
        """Mean cross-entropy in nats, and share of right next tokens."""
        losses, right = [], []
        for rows in self._rows.split(ROWS_PER_FORWARD):
            where = torch.ones_like(rows, dtype=torch.bool)
            where[:, :FIRST_POSITION] = False
            logits, of_rows = self._splice.outputs(rows, where, replacement)
            losses.append(of_rows[:, FIRST_POSITION:])
            guessed = logits[:, FIRST_POSITION:-1].argmax(-1)
            right.append((guessed == rows[:, FIRST_POSITION + 1 :]).float())
        return torch.cat(losses).mean().item(), torch.cat(right).mean().item()


# A cache of one entry is enough, because cases of one place run one after another.
@functools.lru_cache(maxsize=1)
def _in_model(folder: Path, hooks: tuple[str, str]) -> InModel:
    return InModel(folder, hooks, read_rows(folder).held_out_articles[:SPLICED_ROWS])


def in_model(folder: Path, case: Case) -> InModel:
    """The model with the hooks that a case's coder reads and replaces."""
    source, target = site(case.layer).hooks
    return _in_model(folder, (target if case.form == "autoencoder" else source, target))
