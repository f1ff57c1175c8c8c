"""What a training step makes beside weights, gradients and optimizer, by host and architecture.

The numbers were counted: all live tensors of steps in the hosts' trainers, at eight sizes, on a CPU
(docs/plan.md). Products were counted too; sums are those of the code.
"""

from typing import NamedTuple

# Tokens of a block of gradients on a CPU: processor.BLOCK_TOKENS, which would import torch.
BLOCK = 1024


class Arrays(NamedTuple):
    """Arrays of float32 at one moment.

    Attributes:
        weights: copies of all weights, beside weights, gradients and optimizer. Below 0 if some
            gradients do not exist yet.
        latents, widths, actives: arrays [tokens, latents], [tokens, d_in] and [tokens, k].
        rows: arrays [tokens, k, d_in].
        blocks: arrays [tokens, latents] of BLOCK tokens at most.
    """

    weights: float
    latents: float
    widths: float
    actives: float
    rows: float = 0
    blocks: float = 0


class StepCost(NamedTuple):
    """Two moments of a step, of which the larger one counts, and its products of matrices.

    Attributes:
        backward: at the peak of forward and backward.
        update: what is left of the step while the optimizer updates the weights. See UPDATE too.
        products: products of tokens, width and latents, of 2 FLOPs each.
        sums: products of tokens, width and k: sums of rows, and dot products of single latents.
    """

    backward: Arrays
    update: Arrays
    products: float
    sums: float


# Copies of all weights that an optimizer's update makes, by host and optimizer. Adam makes none for
# this package's coders (training/one_pass.py).
UPDATE = {("saelens", "adam"): 1.5, ("sparsify", "adam"): 1.0, ("sparsify", "signum"): 0.5}
_SAELENS = {
    ("binary", False): StepCost(Arrays(0.7, 0, 1.8, 45), Arrays(0, 0, 3, 29), 1, 6),
    ("binary_entropy", False): StepCost(Arrays(0, 1.2, 7.3, 0, 0, 1), Arrays(0, 1.3, 3.4, 0), 3, 2),
    ("binary_refined", False): StepCost(Arrays(-0.6, 5.8, 4.9, 0), Arrays(0, 3, 3, 0), 7.8, 2),
    ("topk", False): StepCost(Arrays(-0.5, 7, 4, 3), Arrays(0, 3, 3, 0), 6, 0),
    ("binary", True): StepCost(Arrays(0.7, 0, 3.5, 42), Arrays(0, 0, 5, 29), 1, 6),
    ("binary_entropy", True): StepCost(Arrays(0, 1.2, 9.3, 0, 0, 1), Arrays(0, 1.3, 5.4, 0), 3, 2),
    ("topk", True): StepCost(Arrays(-0.5, 5, 5, 3), Arrays(0, 3, 5, 0), 5, 0),
}
_NOTHING = Arrays(0, 0, 0, 0)
_SPARSIFY = {
    ("binary", False): StepCost(Arrays(0.1, 0, 4.4, 41), _NOTHING, 1, 6),
    ("binary_entropy", False): StepCost(Arrays(0, 1.3, 9, 0, 0, 1), _NOTHING, 3, 2),
    ("binary_refined", False): StepCost(Arrays(0.4, 3.6, 12, 0), _NOTHING, 7.8, 2),
    ("topk", False): StepCost(Arrays(0, 1, 7, 6, 1), _NOTHING, 1, 5),
    ("binary", True): StepCost(Arrays(0.1, 0, 4.4, 41), _NOTHING, 1, 6),
    ("binary_entropy", True): StepCost(Arrays(0, 1.3, 9, 0, 0, 1), _NOTHING, 3, 2),
    ("topk", True): StepCost(Arrays(0, 1, 5, 6, 1), _NOTHING, 1, 4),
}
# On a GPU, codes with a gradient for every latent are dense. The others make the same arrays there.
ON_GPU = {
    ("saelens", "binary_entropy", False): (Arrays(-0.5, 9.3, 4, 0), Arrays(0, 3.3, 3, 0)),
    ("saelens", "binary_entropy", True): (Arrays(-0.5, 9.3, 6, 0), Arrays(0, 3.3, 5, 0)),
    ("sparsify", "binary_entropy", False): (Arrays(-0.5, 7.3, 6, 0), _NOTHING),
    ("sparsify", "binary_entropy", True): (Arrays(-0.5, 7.3, 6, 0), _NOTHING),
}
# The first batch of `binary`, before gradients and optimizer exist: the most tokens that arrays
# [tokens, latents] have, and the arrays. Transcoders have the last row too.
START = (
    (4096, Arrays(0.5, 1.15, 3, 0)),
    (1024, Arrays(0.6, 3.1, 4.5, 20)),
    (4096, Arrays(2, 2, 6, 0)),
)
# By host, architecture, and whether the coder is a transcoder.
STEPS: dict[tuple[str, str, bool], StepCost] = {
    (host, *kind): cost
    for host, costs in (("saelens", _SAELENS), ("sparsify", _SPARSIFY))
    for kind, cost in costs.items()
}
