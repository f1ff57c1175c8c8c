"""Measures an index of SmolLM2's codes: speed, disk, query times, and recall of neighbours.

Usage: python -m benchmarks.search CODER FOLDER [--tokens 100000] [--shuffled_rounds 0]

The text is all articles of the bundled Wikipedia sample, about 700,000 tokens. With
--shuffled_rounds N they follow N times more, with the sentences of each article shuffled. FOLDER
gets the text and the index. A later run with the same FOLDER measures the finished index again,
without the speed of indexing.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from datasets import Dataset
from pyroaring import BitMap
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.measure import print_table
from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.commands import CodeIndex, IndexConfig, run_index
from sae_binary_ext.commands.index.index_folder import HEADER, IndexFolder
from sae_binary_ext.measure.reading import OpenedModel, open_coders, read_text

PROCESSES, WARM_RUNS = 20, 20
NEIGHBOURS, QUERY_TOKENS = 10, 200
ZSTANDARD_LEVEL = 19
# A process that opens the index and answers. It prints seconds without and with passages, seconds
# from its own start, imports included, and seconds of the processor without passages.
QUERY = """
import time
started = time.perf_counter()
import json, sys
from sae_binary_ext.commands.search.code_index import CodeIndex
imported, imported_cpu = time.perf_counter(), time.process_time()
index = CodeIndex.open(sys.argv[1])
answer = index.query(sys.argv[2], sys.argv[3])
count, queried, cpu = answer.count, time.perf_counter(), time.process_time() - imported_cpu
index.passages(answer)
ended = time.perf_counter()
print(json.dumps([queried - imported, ended - imported, ended - started, cpu, count]))
"""


def write_text(path: Path, shuffled_rounds: int) -> None:
    """Write the articles, and then rounds of the articles with their sentences shuffled."""
    articles = [text for _, text in read_wikipedia_sample()]
    texts = list(articles)
    for seed in range(shuffled_rounds):
        drawn = random.Random(seed)
        for article in articles:
            sentences = re.split(r"(?<=[.!?])\s+", article)
            texts.append(" ".join(drawn.sample(sentences, len(sentences))))
    Dataset.from_dict({"text": texts}).to_parquet(path)


def index_and_time(coder: str, out: Path, config: IndexConfig) -> IndexFolder:
    """Index the text; print tokens a second of the forward pass alone and of all work together."""
    forward, seconds, started = OpenedModel.forward, list[float](), list[float]()
    before = IndexFolder.open(out).tokens if (out / HEADER).exists() else 0

    def timed(opened: OpenedModel, *arguments: Any) -> Any:
        begin = time.perf_counter()
        started.append(begin)
        found = forward(opened, *arguments)
        seconds.append(time.perf_counter() - begin)
        return found

    OpenedModel.forward = timed
    try:
        folder = run_index(out, coder, config)
    finally:
        OpenedModel.forward = forward
    if seconds:
        whole = time.perf_counter() - started[0]
        tokens = folder.tokens - before
        rates = tokens / sum(seconds), tokens / whole
        row = (f"{tokens:,}", *(f"{rate:,.0f}" for rate in rates), f"{rates[1] / rates[0]:.2f}")
        columns = ("tokens", "forward pass alone, tokens/s", "indexing, tokens/s", "ratio")
        print_table("Speed of indexing, from the first batch to the end", columns, [row])
    return folder


def sizes(folder: IndexFolder) -> None:
    """Print bits a token of each part, and of other ways to write the same bitmaps."""
    bits, entropy = folder.bits(), folder.entropy()
    codes = bits["bitmaps"] + bits["table"]
    rows = [(name, f"{own:.1f}") for name, own in bits.items()]
    rows += [("entropy of the firing rates", f"{entropy:.1f}")]
    rows += [("(bitmaps + table) / entropy", f"{codes / entropy:.3f}")]
    print_table(f"Bits a token on disk, {folder.tokens:,} tokens", ("part", "bits"), rows)
    ways = dict.fromkeys(WAYS, 0)
    for latent in tqdm(range(folder.header.latents), "Other encodings"):
        for positions in folder.positions(latent):
            for name, write in WAYS.items():
                ways[name] += len(write(positions)) if len(positions) else 0
    rows = [("Rice codes of gaps", f"{bits['bitmaps']:.1f}")]
    rows += [(name, f"{8 * size / folder.tokens:.1f}") for name, size in ways.items()]
    print_table("The same bitmaps, written otherwise", ("encoding", "bits a token"), rows)


def roaring(positions: Any) -> bytes:
    bitmap = BitMap(positions)
    bitmap.run_optimize()
    return bitmap.serialize()


def compressed(payload: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTANDARD_LEVEL).compress(payload)


def gaps_in_planes(positions: Any) -> bytes:
    """The gaps between positions, all low bytes first."""
    gaps = np.diff(positions, prepend=positions[:1]).astype("<u4")
    return gaps.view(np.uint8).reshape(-1, 4).T.tobytes()


WAYS: dict[str, Callable[[Any], bytes]] = {
    "roaring, run-optimised": roaring,
    "roaring, zstandard if smaller": lambda own: min(
        roaring(own), compressed(roaring(own)), key=len
    ),
    "gaps as bytes, zstandard": lambda own: compressed(gaps_in_planes(own)),
}


def queries(folder: IndexFolder) -> dict[str, tuple[str, str]]:
    """Queries of latents at fixed ranks of the firing rate, each with its scope."""
    ranked = np.argsort(-folder.firings[:-1], kind="stable")
    first, second, third, fourth = ranked[[20, 60, 200, 600]].tolist()
    both = f"{first} & {second} & !{third}"
    return {
        "A & B & !C, tokens": (both, "token"),
        "A & B & !C, windows": (both, "window"),
        "A & B & !C, documents": (both, "document"),
        "at least 2 of (A, B, C, D), tokens": (
            f"at least 2 of ({first}, {second}, {third}, {fourth})", "token",
        ),
    }  # fmt: skip


def forget(folder: Path) -> None:
    """Drop an index's files from the system's cache, so that the next process reads the disk."""
    for file in folder.rglob("*"):
        if file.is_file() and "model" not in file.relative_to(folder).parts:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def query_times(folder: IndexFolder) -> None:
    """Print medians of PROCESSES new processes, with and without cached files, and of one."""

    def cold(query: str, within: str, cached: bool) -> list[float]:
        runs: list[list[float]] = []
        for _ in range(PROCESSES):
            if not cached:
                forget(folder.path)
            command = [sys.executable, "-c", QUERY, str(folder.path), query, within]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(found))
        return [statistics.median(column) for column in zip(*runs, strict=True)]

    def rows() -> Iterator[tuple[str, ...]]:
        index = CodeIndex.open(folder.path)
        for name, (query, within) in queries(folder).items():
            answered, shown, whole, cpu, count = cold(query, within, cached=True)
            from_disk = cold(query, within, cached=False)[0]
            warm: list[float] = []
            for _ in range(WARM_RUNS):
                started = time.perf_counter()
                found = index.count(query, within)
                warm.append(time.perf_counter() - started)
            seconds = (answered, cpu, from_disk, shown, whole, statistics.median(warm))
            assert found == count
            yield name, f"{found:,}", *(f"{1000 * each:.1f}" for each in seconds)

    columns = ("query", "answers", "new process, ms", "of the processor, ms")
    columns += ("files not cached, ms", "with ten passages, ms", "and imports, ms", "again, ms")
    title = f"Query times, {folder.tokens:,} tokens, median of {PROCESSES}"
    print_table(title, columns, rows())


def recall(coder: str, folder: IndexFolder, config: IndexConfig) -> None:
    """Print how many of the nearest tokens by cosine of hidden states the codes find."""
    opened = open_coders([coder], config, folder.path)
    (candidate,), (hooks,) = opened.candidates, opened.hooks.values()
    states, codes = list[Tensor](), list[Tensor]()
    for batch in read_text(opened, config, "Reading for recall"):
        states.append(batch.activations(hooks)[0].float())
        codes.append(batch.codes(candidate.coder, hooks[0]) != 0)
    all_states, all_codes = torch.cat(states), torch.cat(codes)
    own = torch.randperm(len(all_states), generator=torch.Generator().manual_seed(0))[:QUERY_TOKENS]
    centred = all_states - all_states.mean(0)
    exact = {
        "cosine of hidden states": nearest(normalize(all_states), own),
        "cosine after subtracting the mean": nearest(normalize(centred), own),
    }
    scores = {name: -distances(all_codes, own, jaccard) for name, jaccard in
              (("Hamming", False), ("Jaccard", True))}  # fmt: skip
    found = {name: top_without(score, own) for name, score in scores.items()}
    rows = [
        (name, truth, f"{shared(mine, expected):.3f}")
        for name, mine in found.items()
        for truth, expected in exact.items()
    ]
    both = shared(*exact.values())
    rows.append((*exact, f"{both:.3f}"))
    title = f"Recall@{NEIGHBOURS} for {QUERY_TOKENS} tokens, of {len(all_states):,}"
    print_table(title, ("neighbours by", "beside those by", "recall"), rows)
    index, started = CodeIndex.open(folder.path), time.perf_counter()
    if index.folder.tokens - int(folder.firings[-1]) == len(all_codes):
        for place, score in zip(own.tolist()[:20], scores["Hamming"], strict=False):
            latents = all_codes[place].nonzero()[:, 0].tolist()
            own_distances = [each.distance for each in index.nearest(latents, NEIGHBOURS)]
            assert own_distances == (-score).sort().values[:NEIGHBOURS].tolist()
        print(
            f"nearest: {(time.perf_counter() - started) / 20:.4f} s a token, equal to brute force"
        )


def distances(codes: Tensor, own: Tensor, jaccard: bool) -> Tensor:
    """Hamming or Jaccard distances [own, tokens] of codes, bool [tokens, latents]."""
    wanted = codes[own].float()
    common = torch.cat([wanted @ part.float().T for part in codes.split(10_000)], dim=1)
    either = wanted.sum(1, keepdim=True) + codes.sum(1) - common
    return 1 - common / either.clamp(min=1) if jaccard else either - common


def nearest(rows: Tensor, own: Tensor) -> Tensor:
    return top_without(rows[own] @ rows.T, own)


def top_without(scores: Tensor, own: Tensor) -> Tensor:
    """The NEIGHBOURS highest scores [own, tokens] of each row, without the token itself."""
    scores = scores.clone()
    scores[torch.arange(len(own)), own] = -torch.inf
    return scores.topk(NEIGHBOURS).indices


def shared(mine: Tensor, expected: Tensor) -> float:
    same = (mine[:, :, None] == expected[:, None]).any(2)
    return same.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("coder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--shuffled_rounds", type=int, default=0)
    recall_help = "tokens for recall, which needs their hidden states in memory; 0 leaves it out"
    parser.add_argument("--recall_tokens", type=int, default=100_000, help=recall_help)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    text = options.folder / "text.parquet"
    if not text.exists():
        write_text(text, options.shuffled_rounds)
    config = IndexConfig(dataset=str(text), tokens=options.tokens)
    folder = index_and_time(options.coder, options.folder / "index", config)
    sizes(folder)
    query_times(folder)
    if options.recall_tokens:
        config.tokens = min(options.recall_tokens, options.tokens)
        recall(options.coder, folder, config)


if __name__ == "__main__":
    main()
