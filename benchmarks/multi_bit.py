"""Compares codes of several bits per latent with codes of one bit, at equal description length.

python -m benchmarks.multi_bit FOLDER

FOLDER is the folder of benchmarks.reconstruction, with activations of SmolLM2's layer 9. Two ways
give a latent more than one bit:

- levels: each latent has several thresholds, at quantiles of its pre-activation where it is active.
  Each threshold has a decoder row. The code of a latent is the number of thresholds it exceeds.
- stack: a second coder is trained on the error of the first. Each coder has half of the latents.

All decoder rows are solved for together at the end, by least squares on the training tokens. Bits
are the entropy of each latent's levels, summed over latents. Each FVU is printed beside the FVU of
one-bit codes with as many bits, interpolated from benchmarks/reconstruction/results.jsonl.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reconstruction.activations import MAIN_SITE, Split, compute_missing, load
from benchmarks.reconstruction.cases import LATENTS, Case, sparing
from benchmarks.reconstruction.results import find_results, read_results
from benchmarks.reconstruction.training import train
from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.commands import level_entropy, level_thresholds, with_levels
from sae_binary_ext.measure import DecoderFit
from sae_binary_ext.training.least_squares import PULL

TOKENS_A_BATCH = 2048
LEVELS = (1, 2, 4)
SINGLE = ("4.3e-4", "1.85e-4", "8e-5")
# Price of a bit in the first and the second coder, as a share of the first coder's input variance.
STACKS = (("8.6e-4", 4.3e-4), ("4.3e-4", 4.3e-4), ("4.3e-4", 1.85e-4))
Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """Bits per token and FVU of a code on held-out tokens."""

    name: str
    bits: float
    fvu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    compute_missing(folder, [MAIN_SITE])
    split = load(folder, MAIN_SITE)
    print("| code | bits a token | FVU | single bits, as many | ratio |\n|---|---|---|---|---|")
    for price in SINGLE[:2]:
        coder = trained(sparing(price), split)
        for levels in LEVELS:
            report(leveled(f"{price} a bit, {levels} levels", coder, levels, split))
    for price, of_second in STACKS:
        report(stack(price, of_second, split))


def report(measured: Measured) -> None:
    """Print the table row of one measured code."""
    single = single_bits(measured.bits)
    print(
        f"| {measured.name} | {measured.bits:.0f} | {measured.fvu:.4f} | {single:.4f} "
        f"| {measured.fvu / single:.3f} |",
        flush=True,
    )


def trained(case: Case, split: Split) -> Any:
    """Train a coder with a case's settings and seed 0."""
    with tempfile.TemporaryDirectory() as folder:
        return train(case, MAIN_SITE, split, seed=0, folder=Path(folder))[0]


def leveled(name: str, coder: Any, levels: int, split: Split) -> Measured:
    """Measure a coder with several thresholds a latent. With one level the coder is unchanged."""
    batches = (batch.float() for batch in split.train.split(TOKENS_A_BATCH))
    wide = with_levels(coder, level_thresholds(coder, batches, levels))
    fvu, rates = solve_and_measure(lambda x: wide.encode(x) != 0, wide.cfg.d_sae, split)
    return Measured(name, level_entropy(rates.reshape(levels, -1)), fvu)


def stack(price: str, of_second: float, split: Split) -> Measured:
    """Measure two coders, each with half the latents. The second learns the error of the first."""
    half = LATENTS // 2
    first = trained(replace(sparing(price), latents=half), split)
    left = replace(split, train=residual(first, split.train))
    # The second coder's input has less variance, so the same price is a larger share of it.
    own_price = of_second * variance(split.train) / variance(left.train)
    second = trained(replace(sparing(f"{own_price:.3g}"), latents=half), left)

    def encode(x: Tensor) -> Tensor:
        codes = first.encode(x)
        return torch.cat([codes, second.encode(x - first.decode(codes))], dim=1) != 0

    fvu, rates = solve_and_measure(encode, LATENTS, split)
    name = f"{price} a bit, then {of_second:g}"
    return Measured(name, bernoulli_entropy(rates).sum().item(), fvu)


@torch.no_grad()
def residual(coder: Any, activations: Tensor) -> Tensor:
    """Error of a coder: activations [tokens, width] minus the coder's output, float16."""
    parts = activations.split(TOKENS_A_BATCH)
    return torch.cat([(part - coder(part.float())).half() for part in parts])


def variance(activations: Tensor) -> float:
    """Variance of activations, summed over dimensions."""
    return activations.float().var(dim=0).sum().item()


@torch.no_grad()
def solve_and_measure(encode: Encoder, latents: int, split: Split) -> tuple[float, Tensor]:
    """Solve for the decoder on training tokens, and measure it on held-out tokens.

    Returns the FVU and the firing rates, float64 [latents], on the held-out tokens.
    """
    width = split.train.shape[1]
    fit = DecoderFit(latents, width)
    for batch in split.train.split(TOKENS_A_BATCH):
        fit.add(encode(batch.float()), batch.float())
    mean = (fit.target_sum / fit.tokens).float()
    weight, bias = fit.solve(torch.zeros(latents, width), mean, PULL, fits_bias=True)
    held_out = split.held_out.float()
    error, active = 0.0, torch.zeros(latents, dtype=torch.float64)
    for batch in held_out.split(TOKENS_A_BATCH):
        codes = encode(batch)
        error += (codes.float() @ weight + bias - batch).double().square().sum().item()
        active += codes.sum(0)
    total = (held_out.double() - held_out.double().mean(0)).square().sum().item()
    return error / total, active / len(held_out)


def single_bits(bits: float) -> float:
    """FVU of coders with one threshold at this many bits, from the measured curve.

    The FVU is interpolated linearly in the logarithms of FVU and bits. Beyond the curve's last
    point, it follows the line through the last two points.
    """
    points = [measured_at(price) for price in SINGLE]
    place = 0 if math.log(bits) < points[1][0] else 1
    (low, at_low), (high, at_high) = points[place : place + 2]
    share = (math.log(bits) - low) / (high - low)
    return math.exp(at_low + share * (at_high - at_low))


def measured_at(price: str) -> tuple[float, float]:
    """Logarithms of bits and FVU of the single-bit coder at this price, both means over seeds."""
    results = find_results(read_results(), sparing(price), MAIN_SITE)
    bits, fvu = (
        sum(getattr(each.held_out, name) for each in results) / len(results)
        for name in ("bits", "fvu")
    )
    return math.log(bits), math.log(fvu)


if __name__ == "__main__":
    main()
