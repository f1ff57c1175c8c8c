"""Coders that an earlier version of the package wrote load, and compute the same as before.

Commit 9e995c8 wrote written_before/: every selection, both hosts, training checkpoints and
inference coders, and one coder of each paper. expected.safetensors holds the inputs, codes and
outputs of that commit. Weights and inputs are a few bits wide, so that sums are exact in any order.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_binary_ext.checkpoints import load_coder

FOLDER = Path(__file__).parent / "written_before"
EXPECTED = load_file(FOLDER / "expected.safetensors")
CODERS = sorted(name.removesuffix(" codes") for name in EXPECTED if name.endswith(" codes"))


@torch.no_grad()
@pytest.mark.parametrize("name", CODERS)
def test_a_coder_of_before_computes_what_it_did(name: str):
    x, expected = EXPECTED["x"], EXPECTED[f"{name} codes"]
    if name.startswith(("saelens", "cho2025")):
        coder = load_coder(FOLDER / name, host="saelens")
        codes, output = coder.encode(x), coder(x)
    else:
        coder = load_coder(FOLDER / name, host="sparsify")
        found = coder.encode(x)
        codes = torch.zeros_like(expected).scatter(-1, found.top_indices, found.top_acts)
        output = coder(x, y=x).sae_out
    assert torch.equal(codes, expected)
    assert torch.equal(output, EXPECTED[f"{name} output"])
