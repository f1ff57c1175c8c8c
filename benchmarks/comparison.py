"""What `sae-binary compare` costs beside the model's own forward passes.

python -m benchmarks.comparison FOLDER MODEL: up to four coders of a folder, and their model's.

Ours is one pass over the text for all coders, without what the model loses with them in place,
which takes a forward pass a coder. Theirs is the model's forward pass over the same rows alone.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETransformerBridge

from benchmarks.measure import ROUNDS
from sae_binary_ext.evaluation import Amount, Comparison, load_candidates, read_documents
from sae_binary_ext.evaluation.documents import cut_rows
from sae_binary_ext.evaluation.in_model import ROWS_PER_FORWARD

TOKENS, CODERS = 8000, 4


def main(folder: str, model_folder: str) -> None:
    """Print the seconds of both and their ratio."""
    candidates = load_candidates([folder])[:CODERS]
    model: Any = SAETransformerBridge.boot_transformers(model_folder, device="cpu")
    texts = list(read_documents(None))
    amount = Amount(tokens=TOKENS)

    def comparing() -> float:
        with tempfile.TemporaryDirectory() as saved:
            path = Path(saved) / "progress"
            comparison = Comparison(candidates, model, model.tokenizer, lambda: texts, amount, path)
            return seconds_of(comparison.measure)

    batches = rows_of(model, texts, amount)
    rounds = [
        (comparing(), seconds_of(lambda: forward(model, batches))) for _ in range(ROUNDS + 1)
    ][1:]  # the first warms up
    ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(mine / other for mine, other in rounds)
    names = ", ".join(each.name for each in candidates)
    print(f"{names}: {ours:.1f} s, the model {theirs:.1f} s, ratio {ratio:.2f}")


def seconds_of(run: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def rows_of(model: Any, texts: list[str], amount: Amount) -> list[torch.Tensor]:
    """The batches that a comparison of this amount reads."""
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
    """The model's forward passes."""
    for batch in batches:
        model(batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
