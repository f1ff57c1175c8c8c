"""Trains and measures one coder of the comparison, in a process of its own."""

import functools
import tempfile
from pathlib import Path

from sae_lens import SAETransformerBridge

from benchmarks.reconstruction.activations import Site, load, read_rows
from benchmarks.reconstruction.cases import Case
from benchmarks.reconstruction.results import PARTS, Figures, Result
from benchmarks.reconstruction.training import in_pairs, train
from sae_binary_ext.commands.demo.config import FIRST_POSITION
from sae_binary_ext.measure import CoderMetrics, SplicedModel, measure

SPLICED_ROWS = 16


def run_case(folder: Path, run: tuple[Site, Case, int]) -> Result:
    """Train and measure one coder, given by its site, case and seed."""
    site, case, seed = run
    split = load(folder, site)
    with tempfile.TemporaryDirectory() as saved:
        coder, seconds = train(case, site, split, seed, Path(saved))
    figures = {
        part: figures_of(case, measure(coder, *in_pairs(getattr(split, part), site)))
        for part in PARTS
    }
    return Result(
        kind=site.kind,
        layer=site.layer,
        case=case.name,
        settings=case.settings(),
        seed=seed,
        **figures,
        recovered=spliced_model(folder, site).losses(coder).recovered,
        seconds=seconds,
    )


def figures_of(case: Case, metrics: CoderMetrics) -> Figures:
    """The figures of a case's coder that go into the results."""
    return Figures(
        fvu=metrics.fvu,
        l0=metrics.l0,
        dead=metrics.dead,
        dense=metrics.dense_10,
        entropy_bits=metrics.entropy_bits,
        bits=case.bits(metrics.entropy_bits, metrics.l0),
    )


# A cache of one entry is enough, because cases of one site run one after another.
@functools.lru_cache(maxsize=1)
def spliced_model(folder: Path, site: Site) -> SplicedModel:
    """The model and the first held-out rows, on which a coder's output replaces activations."""
    model = SAETransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
    rows = read_rows(folder).held_out_articles[:SPLICED_ROWS]
    return SplicedModel(model, rows, *site.hooks, first_position=FIRST_POSITION)
