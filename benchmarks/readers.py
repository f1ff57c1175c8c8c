"""How fast our commands read text, beside the model's forward pass alone to the coders' layer.

python -m benchmarks.end_to_end --readers CODER [CODER ...] prints the table.

The forward pass is the commands' own: it stops at the coders' layer. A command's reading is timed
from its first forward pass to its last one, so that the work on each batch is in between. What a
command does after reading (rules, groups of latents, judges) is timed apart.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.hosts import quiet
from benchmarks.measure import print_table
from sae_binary_ext import measure
from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.commands import (
    AblateConfig,
    CompressConfig,
    ComsemConfig,
    EntropyConfig,
    IndexConfig,
    RulesConfig,
    TransferConfig,
    run_ablate,
    run_compress,
    run_comsem,
    run_entropy,
    run_index,
    run_rules,
    run_transfer,
)
from sae_binary_ext.commands.interpret.config import InterpretConfig
from sae_binary_ext.commands.interpret.windows import read_latents
from sae_binary_ext.measure.candidates import OpenedModel
from sae_binary_ext.measure.comparison import Comparison
from sae_binary_ext.measure.documents import padded
from sae_binary_ext.measure.reading import open_coders
from sae_binary_ext.settings import FLOAT32, Amount, TextConfig

Clock = Callable[[], float]
CONTEXT, ROWS = 256, 8
# Characters of each article that are read, about a thousand tokens.
BEGINNING = 4000
COLUMNS = (
    "reader", "tokens", "forward pass alone, tokens/s", "reading, tokens/s", "ratio",
    "after reading, s",
)  # fmt: skip


@dataclass
class Passes:
    """Forward passes: when each began and ended, and its number of tokens, padding included."""

    clock: Clock
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within the block, note the passes of all opened models."""
        forward = OpenedModel.forward

        def timed(opened: OpenedModel, tokens: Tensor, *more: Any) -> dict[str, Tensor]:
            self.began.append(self.clock())
            found = forward(opened, tokens, *more)
            self.ended.append(self.clock())
            self.tokens.append(tokens.numel())
            return found

        OpenedModel.forward = timed
        try:
            yield
        finally:
            OpenedModel.forward = forward


def row_of(name: str, run: Callable[[], object], clock: Clock) -> tuple[str, ...]:
    """A row of the table: run a reader once."""
    passes = Passes(clock)
    with quiet(), passes.noted():
        run()
        ended = clock()
    # The last pass only ends the reading of the batch before it.
    own = [end - begin for begin, end in zip(passes.began, passes.ended, strict=True)][:-1]
    whole, tokens = passes.began[-1] - passes.began[0], sum(passes.tokens[:-1])
    return (
        name, f"{tokens:,}", f"{tokens / sum(own):,.0f}", f"{tokens / whole:,.0f}",
        f"**{sum(own) / whole:.2f}**", f"{ended - passes.ended[-1]:.1f}",
    )  # fmt: skip


def readers_of(
    coders: list[str], text: Path, out: Path, tokens: int, precision: str = FLOAT32
) -> dict[str, Callable[[], object]]:
    """The readers, by name, on the first tokens of a text. Two of them have no precision."""
    of_text: dict[str, Any] = {"dataset": str(text), "tokens": tokens, "output": out}
    common = of_text | {"precision": precision}
    opened = open_coders(coders, EntropyConfig(**common), out)
    first = coders[0]

    def compare() -> None:
        Comparison(opened, Amount(tokens), out / "progress").measure()

    def interpret() -> None:
        read_latents(opened, InterpretConfig(**common).amount(), out / "read", ())

    def refit() -> None:
        # open_coders has written the bundled model there, if the coders need that one.
        model = str(out / "model") if (out / "model").exists() else None
        measure.refit(first, out / "refitted", measure.Text(str(text), model, tokens))

    def index() -> None:
        run_index(out / "index", first, IndexConfig(**common))

    return {
        "compare, without splicing": compare,
        "interpret, without judges": interpret,
        "entropy, probe (bits)": lambda: run_entropy(coders, EntropyConfig(**common)),
        "comsem, logit lens": lambda: run_comsem(
            coders, ComsemConfig(**common, decode="logit_lens")
        ),
        "compress": lambda: run_compress([first], CompressConfig(**common)),
        "rules, associations": lambda: run_rules(coders, RulesConfig(**common)),
        "ablate, ranking": lambda: run_ablate(
            [first], AblateConfig(**of_text, spliced_tokens=200, groups=1, latents=0)
        ),
        "transfer, two layers": lambda: run_transfer([first], TransferConfig(**common, layers=[0])),
        "index": index,
        "refit": refit,
    }


def print_readers(
    coders: list[str], clock: Clock, tokens: int = 8_192, precision: str = FLOAT32
) -> None:
    """Print a table of the readers, and one of the forward pass in other forms."""
    with tempfile.TemporaryDirectory() as folder:
        out, text = Path(folder), Path(folder) / "text.parquet"
        # Beginnings, so that a few thousand tokens are of several documents.
        articles = [article[:BEGINNING] for _, article in read_wikipedia_sample()]
        Dataset.from_dict({"text": articles}).to_parquet(text)
        readers = readers_of(coders, text, out, tokens, precision)
        names = ", ".join(Path(coder).name for coder in coders)
        title = f"Readers of {names}: {tokens:,} tokens, {precision}, {ROWS} rows of {CONTEXT}"
        print_table(title, COLUMNS, (row_of(*reader, clock) for reader in readers.items()))
        opened = open_coders(coders, TextConfig(dataset=str(text), output=out), out)
        print_table(
            "The forward pass alone", ("form", "tokens/s"), forms_of_pass(opened, tokens, clock)
        )


def forms_of_pass(opened: OpenedModel, tokens: int, clock: Clock) -> Iterator[tuple[str, str]]:
    """Tokens a second of the pass as it is, of rows of equal length, and in bfloat16 too."""
    batches = [batch for batch, _ in opened.batches(tokens)]
    number = sum(int(batch.lengths.sum()) for batch in batches)
    rows = [
        row[:length].tolist()
        for batch in batches
        for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)
    ]
    rows.sort(key=len)
    of_length = [
        padded(part, [0] * len(part), len(part[-1])).tokens
        for part in (rows[first : first + ROWS] for first in range(0, len(rows), ROWS))
    ]
    bfloat16 = torch.autocast("cpu", torch.bfloat16)
    for name, all_rows, context in (
        ("as our readers run it", [batch.tokens for batch in batches], nullcontext()),
        ("rows batched by length", of_length, nullcontext()),
        ("rows batched by length, bfloat16", of_length, bfloat16),
    ):
        started = clock()
        with context:
            for tokens_of_rows in all_rows:
                opened.forward(tokens_of_rows)
        yield name, f"{number / (clock() - started):,.0f}"
