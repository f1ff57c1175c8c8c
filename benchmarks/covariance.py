"""Times of the entropy and covariance losses, beside plain implementations of their formulas.

Usage: python -m benchmarks.covariance
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.hosts import WIDTH
from benchmarks.measure import Runner, compare, peak_mebibytes, print_table, repeat
from sae_binary_ext.coding import (
    CodeRule,
    Encoder,
    bernoulli_entropy,
    binarise,
    covariance_penalty,
    decode,
    minibatch_entropy,
    pre_activations,
    sampled_covariance_penalty,
)
from sae_binary_ext.coding.forms import encode_codes

# Tokens, latents, and the share of codes that are 1. The share is 1% to 2% in a trained coder. At
# the start of the paper's training, without an entropy loss, it is up to a half.
SHAPES = (
    (4096, 2304, 0.015),
    (4096, 2304, 0.05),
    (4096, 2304, 0.1),
    (4096, 2304, 0.5),
    (512, 9216, 0.005),
)
WIDE = (512, 65_536, 0.001)
SAMPLE = 2048


def plain_penalty(codes: Tensor) -> Tensor:
    """Sum of |covariance| over all pairs of different latents, computed from the whole matrix."""
    # The mean is detached, because its gradient sums to zero over the batch.
    centred = codes - codes.detach().mean(0)
    covariance = centred.T @ centred / (len(codes) - 1)
    return covariance.abs().sum() - covariance.diagonal().abs().sum()


def random_codes(tokens: int, latents: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(tokens, latents, generator=generator) < density).float().requires_grad_()


def penalty_rows() -> Iterator[tuple[object, ...]]:
    for tokens, latents, density in SHAPES:
        codes = random_codes(tokens, latents, density)
        times = compare(
            repeat(lambda codes=codes: covariance_penalty(codes).backward()),
            repeat(lambda codes=codes: plain_penalty(codes).backward()),
        )
        yield tokens, latents, f"{density:.1%}", *times.cells()


def step_rows() -> Iterator[tuple[object, ...]]:
    """Times of a coder's whole forward and backward pass, with both losses."""
    rule = CodeRule("threshold")
    for tokens, latents, density in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, WIDTH, generator=generator)
        encoder = torch.randn(WIDTH, latents, generator=generator) / WIDTH**0.5
        threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - density))
        bias = -threshold.expand(latents)
        decoder = torch.randn(latents, WIDTH, generator=generator)
        log_threshold, zeros = torch.full((latents,), -torch.inf), torch.zeros(WIDTH)
        p = [
            each.clone().requires_grad_()
            for each in (encoder, bias, log_threshold, zeros, decoder, zeros)
        ]

        def ours(x: Tensor = x, p: list[Tensor] = p) -> None:
            encoded = encode_codes(Encoder(x, *p[:4], rule))
            error = (x - encoded.decode(*p[4:])).square().sum()
            bits = bernoulli_entropy(encoded.firing_rates()).sum()
            (error + bits + covariance_penalty(encoded.dense())).backward()

        def plain(x: Tensor = x, p: list[Tensor] = p) -> None:
            codes = binarise(pre_activations(x, *p[:2]), p[2], rule)
            error = (x - decode(codes, *p[4:])).square().sum()
            (error + minibatch_entropy(codes) + plain_penalty(codes)).backward()

        times = compare(repeat(ours), repeat(plain))
        yield tokens, latents, f"{density:.1%}", *times.cells()


def wide_penalty(sample: int) -> Runner:
    """Value and gradient for 65,536 latents, whose covariance matrix would take 16 GB."""
    codes = random_codes(*WIDE)

    def run(times: int) -> list[float]:
        started = time.perf_counter()
        if sample:
            sampled_covariance_penalty(codes, sample, seed=0).backward()
        else:
            covariance_penalty(codes).backward()
        return [time.perf_counter() - started]

    return run


def wide_rows() -> Iterator[tuple[object, ...]]:
    for name, sample in (("exact", 0), (f"estimated from {SAMPLE} latents", SAMPLE)):
        (seconds,) = wide_penalty(sample)(1)
        yield name, f"{seconds:.1f}", f"{peak_mebibytes(wide_penalty, sample):.0f}"


def main() -> None:
    shape = ("tokens", "latents", "ones", "ours, s", "plain, s", "ratio")
    print_table("Covariance penalty: value and gradient", shape, penalty_rows())
    print_table("Entropy and covariance step: forward and backward", shape, step_rows())
    tokens, latents, density = WIDE
    title = f"Covariance penalty of {latents} latents, {tokens} tokens, {density:.1%} ones"
    print_table(title, ("", "s", "MiB beyond the codes"), wide_rows())


if __name__ == "__main__":
    main()
