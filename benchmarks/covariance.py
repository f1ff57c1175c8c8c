"""The covariance penalty, value and gradient, against the formula written plainly.

Usage: python benchmarks/covariance.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sae_binary_ext.coding import covariance_penalty

REPEATS = 5
# Tokens, latents, share of ones.
SHAPES = (
    (4096, 2304, 0.015),
    (4096, 2304, 0.05),
    (4096, 2304, 0.1),
    (4096, 2304, 0.5),
    (512, 2304, 0.015),
    (512, 9216, 0.005),
)


def plain(codes: Tensor) -> Tensor:
    """Sum over i != j of |cov|, with all covariances at once."""
    # The mean's own gradient sums to zero over the batch.
    centred = codes - codes.detach().mean(0)
    covariance = centred.T @ centred / (len(codes) - 1)
    return covariance.abs().sum() - covariance.diagonal().abs().sum()


def seconds(penalty: Callable[[Tensor], Tensor], codes: Tensor) -> float:
    """Of a forward and a backward pass."""
    started = time.perf_counter()
    penalty(codes).backward()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    print("| tokens | latents | ones | plain, s | ours / plain |\n|---|---|---|---|---|")
    for tokens, latents, density in SHAPES:
        codes = (torch.rand(tokens, latents) < density).float().requires_grad_()
        pairs = [(seconds(plain, codes), seconds(covariance_penalty, codes))]
        # Both take turns, so that a slow spell of the machine meets both; the first warms up.
        for _ in range(REPEATS):
            pairs.append((seconds(plain, codes), seconds(covariance_penalty, codes)))
        ratio = statistics.median(ours / theirs for theirs, ours in pairs[1:])
        theirs = statistics.median(theirs for theirs, _ in pairs[1:])
        print(f"| {tokens} | {latents} | {density:.1%} | {theirs:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
