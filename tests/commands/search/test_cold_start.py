"""Time and size of an index of 3,000,000 random tokens with firing rates like a trained coder's."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.index.index_folder import IndexFolder
from sae_binary_ext.commands.index.segment_builder import SegmentBuilder
from tests.indexes import VOCABULARY, write_header

LATENTS, ACTIVE, TOKENS, SEGMENTS = 4608, 32, 3_000_000, 12
DOCUMENT = 700
# A process that only opens the index and answers; imports are not counted.
QUERY = """
import json, resource, sys, time
from sae_binary_ext.commands.search.code_index import CodeIndex
started = time.perf_counter()
index = CodeIndex.open(sys.argv[1])
answer = index.query(sys.argv[2])
count = answer.count
queried = time.perf_counter() - started
shown = len(index.passages(answer))
print(json.dumps([count, queried, shown, time.perf_counter() - started]))
assert not {"torch", "transformers", "sae_lens"} & set(sys.modules)
"""


def write_random_index(folder: Path) -> np.ndarray:
    """Write an index of random codes; returns firing rates [LATENTS], from the highest."""
    random = np.random.default_rng(0)
    rates = np.sort(np.exp(random.normal(-6.5, 1.6, LATENTS)))[::-1]
    rates = np.minimum(rates * ACTIVE / rates.sum(), 0.5)
    write_header(folder, LATENTS)
    tokens = TOKENS // SEGMENTS
    for segment in range(SEGMENTS):
        firing: list[np.ndarray] = []
        for rate in rates:
            most = int(tokens * rate + 6 * np.sqrt(tokens * rate) + 10)
            places = np.cumsum(random.geometric(rate, most)) - 1
            firing.append(places[places < tokens])
        latents = np.repeat(np.arange(LATENTS), list(map(len, firing)))
        builder = SegmentBuilder(LATENTS)
        documents = (np.arange(tokens) + segment * tokens) // DOCUMENT
        builder.add(
            np.arange(tokens) % VOCABULARY,
            np.ones(tokens, np.bool_),
            (np.concatenate(firing), latents),
            documents,
        )
        builder.write(folder / files.SEGMENTS / f"{segment:06}", ["random"], "")
    return rates


@pytest.mark.integration
def test_three_million_tokens_answer_from_a_cold_start_and_take_little_disk(tmp_path: Path):
    write_random_index(tmp_path)
    index = IndexFolder.open(tmp_path)
    bits = index.bits()
    assert bits["bitmaps"] + bits["table"] < 1.2 * index.entropy()
    # Latents of rates near 0.17, 0.03 and 0.01
    command = [sys.executable, "-c", QUERY, str(tmp_path), "10 & 150 & !600"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    count, _, shown, _ = runs[0]
    assert count > 0
    assert shown == 10
    assert statistics.median(queried for _, queried, _, _ in runs) < 0.1
