"""Times of two ways to find the latents with the largest margins, and the way that the code takes.

One way screens latents by bounds in bfloat16. The other computes all margins.

Usage: python -m benchmarks.screening
"""

from collections.abc import Iterator

import torch

from benchmarks.measure import compare, print_table, repeat
from sae_binary_ext.coding import CodeRule, Encoder
from sae_binary_ext.coding.forms.screening import may_screen, pick_from_all, pick_screened

# Dimensions, latents, tokens, and the number of latents to find for each token.
SHAPES = (
    *((576, latents, 4096, found) for latents in (2304, 4608) for found in (16, 32, 64, 128, 256)),
    *((576, 36_864, 1024, found) for found in (16, 64, 256)),
    *((576, 4608, tokens, 64) for tokens in (256, 512, 1024)),
    *((d_in, 8 * d_in, 4096, 64) for d_in in (128, 256, 384, 512, 768, 1024, 2304)),
)


def rows_of() -> Iterator[tuple[object, ...]]:
    for d_in, latents, tokens, found in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, d_in, generator=generator)
        # With these weights, margins have unit variance, as at the start of training.
        weight = torch.randn(d_in, latents, generator=generator) / d_in**0.5
        zeros = torch.zeros(latents)
        encoder = Encoder(x, weight, zeros, zeros, torch.zeros(d_in), CodeRule("topk", found))
        times = compare(
            repeat(lambda encoder=encoder: pick_screened(encoder, 0)),
            repeat(lambda encoder=encoder: pick_from_all(encoder, 0)),
        )
        taken = "bounds" if may_screen(encoder, 0) else "all"
        yield d_in, latents, tokens, found, *times.cells(), taken


def main() -> None:
    columns = ("d_in", "latents", "tokens", "found", "bounds, s", "all, s", "bounds / all", "taken")
    print_table("The largest margins by bounds and from all", columns, rows_of())


if __name__ == "__main__":
    main()
