"""Train and measure all cases, then write docs/reconstruction.md.

python -m benchmarks.reconstruction FOLDER [--seeds 3] [--only WORDS] [--main-site] [--write]

FOLDER takes the model and the activations. What benchmarks/reconstruction/results.jsonl has is not
run again; --write runs nothing and writes the document alone.
"""

import argparse
import functools
import os
import tempfile
from pathlib import Path

from sae_lens import SAETransformerBridge
from tqdm import tqdm

from benchmarks.reconstruction.activations import (
    MAIN_SITE,
    SITES,
    Site,
    compute_missing,
    load,
    read_rows,
)
from benchmarks.reconstruction.cases import Case, cases_of
from benchmarks.reconstruction.document import write_document
from benchmarks.reconstruction.results import (
    PARTS,
    Figures,
    Result,
    append_result,
    find_results,
    read_results,
)
from benchmarks.reconstruction.training import in_pairs, train
from sae_binary_ext.demo.config import FIRST_POSITION
from sae_binary_ext.evaluation import CoderMetrics, SplicedModel, measure

SPLICED_ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run the cases whose names have these words")
    parser.add_argument(
        "--main-site", action="store_true", help="run autoencoders of layer 9 alone"
    )
    parser.add_argument("--write", action="store_true", help="write the document alone")
    arguments = parser.parse_args()
    if not arguments.write:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        sites = [MAIN_SITE] if arguments.main_site else SITES
        run_missing(arguments.folder, sites, arguments.seeds, arguments.only)
    write_document(read_results())


def run_missing(folder: Path, sites: list[Site], seeds: int, only: str) -> None:
    """Train and measure what there is no result of, the first seed of every case before others."""
    wanted = [
        (site, case, seed)
        for seed in range(seeds)
        for site in sites
        for case in cases_of(site)
        if only in case.name
    ]
    results = read_results()
    compute_missing(folder, sites)
    for site, case, seed in tqdm(wanted, "Coders"):
        if all(result.seed != seed for result in find_results(results, case, site)):
            append_result(run_case(folder, site, case, seed))


def run_case(folder: Path, site: Site, case: Case, seed: int) -> Result:
    """Train one coder and measure it."""
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
    """The figures that are kept of a case's coder."""
    return Figures(
        fvu=metrics.fvu,
        l0=metrics.l0,
        dead=metrics.dead,
        dense=metrics.dense_10,
        entropy_bits=metrics.entropy_bits,
        bits=case.bits(metrics.entropy_bits, metrics.l0),
    )


# Cases of one site follow each other.
@functools.lru_cache(maxsize=1)
def spliced_model(folder: Path, site: Site) -> SplicedModel:
    """The model with the first held-out rows, to put a coder's output into."""
    model = SAETransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
    rows = read_rows(folder).held_out_articles[:SPLICED_ROWS]
    return SplicedModel(model, rows, *site.hooks, first_position=FIRST_POSITION)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
