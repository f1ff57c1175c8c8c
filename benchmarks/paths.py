"""Times of the sparse and the dense path of a coder with k active latents per token.

The table also says which of the two paths the code takes.

Usage: python -m benchmarks.paths [--full]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.hosts import WIDTH
from benchmarks.measure import asks_for_all, compare, print_table, repeat
from benchmarks.steps import ALL_KS, KS, SIZES
from sae_binary_ext.coding import (
    CodeRule,
    Encoder,
    binarise,
    decode,
    decode_indices,
    pre_activations,
)
from sae_binary_ext.coding.forms import encode_indices, picks_indices

NARROW = ((256, 4096), (512, 4096), (1024, 4096))


def rows_of(ks: tuple[int, ...]) -> Iterator[tuple[object, ...]]:
    for latents, tokens in (*NARROW, *SIZES):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, WIDTH, generator=generator)
        shapes = ((WIDTH, latents), (latents,), (latents,), (WIDTH,), (latents, WIDTH), (WIDTH,))
        parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        for k in (k for k in ks if k < latents):
            rule = CodeRule("topk", k)

            def sparse(x: Tensor = x, p: list[Tensor] = parameters, rule: CodeRule = rule) -> None:
                codes, picks, _, _ = encode_indices(Encoder(x, *p[:4], rule))
                decode_indices(codes, picks, *p[4:]).square().sum().backward()

            def dense(x: Tensor = x, p: list[Tensor] = parameters, rule: CodeRule = rule) -> None:
                pre = pre_activations(x, p[0], p[1], p[3])
                decode(binarise(pre, p[2], rule), *p[4:]).square().sum().backward()

            times = compare(repeat(sparse), repeat(dense))
            taken = "sparse" if picks_indices(rule, latents, x.device) else "dense"
            yield latents, tokens, k, *times.cells(), taken


def main(*, full: bool) -> None:
    columns = ("latents", "tokens", "k", "sparse, s", "dense, s", "sparse / dense", "taken")
    print_table("Forward and backward of both paths", columns, rows_of(ALL_KS if full else KS))


if __name__ == "__main__":
    main(full=asks_for_all())
