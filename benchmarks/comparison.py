"""Time of `sae-binary compare` beside the time of the model's own forward passes.

python -m benchmarks.comparison FOLDER MODEL [--tokens 8000] [--rounds 3]

The first four coders in FOLDER are compared. MODEL is the model that they read. "Ours" is one pass
over the text for all coders. It leaves out the model's loss with a coder in place, which takes one
more forward pass a coder. "Theirs" is the model's forward passes alone, over the same rows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROUNDS
from sae_binary_ext.measure import Amount, Comparison, load_candidates
from sae_binary_ext.measure.documents import ALL_ARTICLES, cut_rows
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.reading import open_in_model
from sae_binary_ext.settings import TextConfig

CODERS = 4
WARM_UP_TOKENS = 2000


def main() -> None:
    """Print the seconds of the comparison, those of the forward passes, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    candidates = load_candidates([arguments.folder])[:CODERS]
    opened = open_in_model(candidates, TextConfig(arguments.model), Path("runs"), ALL_ARTICLES)
    model: Any = opened.model
    texts = list(opened.documents())
    opened = replace(opened, documents=lambda: texts)

    def round_of(tokens: int) -> tuple[float, float]:
        amount = Amount(tokens=tokens)
        with tempfile.TemporaryDirectory() as saved:
            comparison = Comparison(opened, amount, Path(saved) / "progress")
            ours = seconds_of(comparison.measure)
        batches = rows_of(model, texts, amount)
        return ours, seconds_of(lambda: forward(model, batches))

    round_of(WARM_UP_TOKENS)
    rounds = [round_of(arguments.tokens) for _ in range(arguments.rounds)]
    ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(mine / other for mine, other in rounds)
    names = ", ".join(each.name for each in candidates)
    print(f"{names}: {ours:.1f} s, the model {theirs:.1f} s, ratio {ratio:.2f}")


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds that one call of a function takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def rows_of(model: Any, texts: list[str], amount: Amount) -> list[torch.Tensor]:
    """The batches of rows that `compare` reads for this amount of text."""
    batches: list[torch.Tensor] = []
    tokens = 0
    for batch in cut_rows(texts, model.tokenizer, amount.context_size, ROWS_PER_FORWARD):
        batches.append(batch.tokens)
        tokens += int(batch.positions(amount.first_position).sum())
        if tokens >= amount.tokens:
            break
    return batches


@torch.no_grad()
def forward(model: Any, batches: list[torch.Tensor]) -> None:
    """Run the model's forward passes over these rows."""
    for batch in batches:
        model(batch)


if __name__ == "__main__":
    main()
