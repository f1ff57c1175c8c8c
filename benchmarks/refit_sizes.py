"""Print the FVU of a coder by the number of tokens that its decoder is refitted to.

python -m benchmarks.refit_sizes FOLDER [--tokens 0 200000 600000 2000000]

The coder is `binary` with its defaults, after the longest of its runs in benchmarks.scale, whose
FOLDER has the activations. It is trained if FOLDER lacks it. 0 keeps the trained decoder.
"""

import argparse
from pathlib import Path

from sae_lens import SAE

from benchmarks.reconstruction.training import REFIT_TOKENS, in_pairs
from benchmarks.scale.activations import load
from benchmarks.scale.cases import default_runs
from benchmarks.scale.running import folder_of, train_again
from benchmarks.tables import table_of
from sae_binary_ext.measure import measure, refit_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of python -m benchmarks.scale")
    sizes_help = "numbers of tokens, the last ones of training"
    sizes = (0, 200_000, 600_000, 2_000_000)
    parser.add_argument("--tokens", type=int, nargs="+", default=sizes, help=sizes_help)
    arguments = parser.parse_args()
    runs = [run for run in default_runs() if run.case.family == "binary"]
    run = max(runs, key=lambda run: run.tokens)
    train_again(arguments.folder, [run], jobs=1)
    split = load(arguments.folder, run.site, run.tokens)
    rows = [["tokens of the refit", "FVU on these tokens", "for choosing", "held out"]]
    for tokens in arguments.tokens:
        coder = SAE.load_from_disk(folder_of(arguments.folder, run))
        own = ""
        if tokens:
            parts = split.train[-tokens:].split(REFIT_TOKENS)
            refit = refit_decoder(coder, (in_pairs(part, run.site) for part in parts))
            own = f"{refit.fvu_before:.4f} to {refit.fvu_after:.4f}"
        fvu = [
            measure(coder, *in_pairs(part, run.site)).fvu
            for part in (split.choosing, split.held_out)
        ]
        rows.append([f"{tokens:,}", own, *(f"{each:.4f}" for each in fvu)])
    print(table_of(rows))


if __name__ == "__main__":
    main()
