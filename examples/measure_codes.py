"""Measure a binary coder's codes: their entropy, the effect of latents, and their size in a file.

python examples/measure_codes.py MODEL DATASET CODER
    MODEL    a Hugging Face model or folder, the one that the coder was trained on
    DATASET  a Hugging Face dataset, a file or a local folder of text
    CODER    a folder or Hub id of a binary coder, in any format that load_coder reads
"""

import sys
from pathlib import Path

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands import (
    AblateConfig,
    CompressConfig,
    EntropyConfig,
    decompress,
    read_header,
    run_ablate,
    run_compress,
    run_entropy,
)

model, dataset, coder = sys.argv[1:4]
settings = {"model": model, "dataset": dataset, "tokens": 4000, "context_size": 128}

# print() shows an analysis as a table. The attribute `results` of an analysis has all figures,
# unrounded.
entropy = run_entropy([coder], EntropyConfig(output=Path("entropy"), **settings))
print(entropy)
print(f"dependent pairs of latents: {entropy.results['coders'][0]['dependent_pairs']}\n")

few = {"spliced_tokens": 500, "groups": 3, "latents": 1}
print(run_ablate([coder], AblateConfig(output=Path("ablate"), **few, **settings)))

compressed = run_compress([coder], CompressConfig(output=Path("codes"), **settings))
print(f"\n{compressed}")
path = Path("codes") / compressed.results["coders"][0]["file"]
states = sum(len(block) for block in decompress(path, load_coder(coder)))
print(f"\n{path}: {states} hidden states as {read_header(path).encoding}, read back")
