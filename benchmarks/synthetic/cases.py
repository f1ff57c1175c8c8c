"""The worlds of known features, the coders, and the settings that were searched for each.

Worlds are made by SAELens' sae_lens.synthetic, the code of SynthSAEBench, at a smaller size: 1024
features in 256 dimensions.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAEConfig,
)
from sae_lens.synthetic import (
    ActivationGenerator,
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    RefinedTrainingSAEConfig,
)

FEATURES, WIDTH, LATENTS = 1024, 256, 1024
SAMPLES, EVAL_SAMPLES, BATCH = 512_000, 50_000, 256
SEEDS = (0, 1, 2)
# Seed of the features. All coders of a world see the same features.
WORLD_SEED = 0
# Numbers of levels of magnitude that features of the world "levels" have, in turn.
LEVELS = (1, 2, 4, 8)
LEAST, MOST = 0.5, 2.0

_VARYING: dict[str, Any] = {"std_firing_magnitudes": 0.4}
WORLDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "varying": _VARYING,
    "correlated": _VARYING | {"correlation": LowRankCorrelationConfig(32, 0.2)},
    "hierarchical": _VARYING
    | {
        "hierarchy": HierarchyConfig(
            total_root_nodes=64,
            branching_factor=4,
            max_depth=2,
            mutually_exclusive_portion=0.5,
            compensate_probabilities=True,
        )
    },
    "levels": {},
}
SEARCH_WORLD = "varying"


def new_world(name: str) -> SyntheticModel:
    """A world of known features. In the world "levels", magnitudes take a few values alone."""
    config = SyntheticModelConfig(
        FEATURES,
        WIDTH,
        firing_probability=ZipfianFiringProbabilityConfig(1.0, max_prob=0.3, min_prob=0.01),
        seed=WORLD_SEED,
        **copy.deepcopy(WORLDS[name]),
    )
    if name != "levels":
        return SyntheticModel(config)
    whole = SyntheticModel(config).activation_generator
    generator = ActivationGenerator(
        FEATURES, whole.firing_probabilities, modify_activations=with_levels
    )
    return SyntheticModel(config, activation_generator=generator)


def levels_of_features() -> Tensor:
    """int64 [features]: the number of levels of each feature in the world "levels".

    Levels take turns from feature to feature, so that they do not depend on the firing rate.
    """
    return torch.tensor(LEVELS).repeat(FEATURES // len(LEVELS))


def with_levels(features: Tensor) -> Tensor:
    """Replace magnitudes [samples, features] of active features by levels, drawn evenly.

    The levels of a feature are spread evenly from LEAST to MOST. One level alone is their middle.
    """
    levels = levels_of_features().to(features.device)
    drawn = (torch.rand_like(features) * levels).floor()
    steps = (levels - 1).clamp_min(1)
    spread = LEAST + (MOST - LEAST) * drawn / steps
    values = torch.where(levels == 1, (LEAST + MOST) / 2, spread)
    return torch.where(features > 0, values, 0.0)


# SAELens' default norm of 0.1 leaves latents of topk dead, as in the other benchmarks.
NORM = {"decoder_init_norm": 1.0}
# Config of each family, its fixed fields, and the field that sets how many latents are active.
FAMILIES: dict[str, tuple[type[TrainingSAEConfig], dict[str, Any], str]] = {
    "topk": (TopKTrainingSAEConfig, NORM, "k"),
    "batchtopk": (BatchTopKTrainingSAEConfig, NORM, "k"),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAEConfig,
        NORM | {"matryoshka_widths": [64, 256, LATENTS]},
        "k",
    ),
    "jumprelu": (JumpReLUTrainingSAEConfig, {"l0_warm_up_steps": 500}, "l0_coefficient"),
    "gated": (GatedTrainingSAEConfig, {"l1_warm_up_steps": 500}, "l1_coefficient"),
    "binary": (BinaryTrainingSAEConfig, {}, "k"),
    "binary_entropy": (
        BinaryEntropyTrainingSAEConfig,
        {"selection": "threshold"},
        "entropy_coefficient",
    ),
    "binary_refined": (RefinedTrainingSAEConfig, {}, "cost_of_bit"),
}

# Mean number of active features, about; k of the families that have it.
TRUE_L0 = 12
# What is searched for each family. The families with k have the world's number of active
# features, so they have as many learning rates as the others have pairs.
RATES = (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 8e-3)
PAIRED_RATES = (1e-3, 4e-3)
PRICES: dict[str, tuple[float, ...]] = {
    "jumprelu": (0.3, 1.0, 3.0),
    "gated": (0.3, 1.0, 3.0),
    "binary_entropy": (5e-4, 1e-3, 2e-3),
    "binary_refined": (5e-4, 1e-3, 2e-3),
}

# Two more pairs of learning rate and price for each family, chosen after the first six: beside its
# best pair, where that one was at the edge of the search or had few neighbours.
FURTHER: dict[str, tuple[tuple[float, float], ...]] = {
    **dict.fromkeys(
        ("topk", "batchtopk", "matryoshka", "binary"), ((6e-3, TRUE_L0), (1.2e-2, TRUE_L0))
    ),
    # One more than the others, because the first two had too few active latents.
    "jumprelu": ((4e-3, 0.15), (4e-3, 0.2), (4e-3, 0.07)),
    "gated": ((4e-3, 0.7), (8e-3, 1.0)),
    "binary_entropy": ((8e-3, 2e-3), (8e-3, 3e-3)),
    "binary_refined": ((4e-3, 8e-4), (8e-3, 1e-3)),
}


@dataclass(frozen=True)
class Case:
    """A coder to train: its family, learning rate and price (k, or the coefficient of sparsity)."""

    family: str
    lr: float
    price: float

    def config(self) -> TrainingSAEConfig:
        """The coder's config."""
        kind, fixed, price = FAMILIES[self.family]
        number = int(self.price) if price == "k" else self.price
        return kind(d_in=WIDTH, d_sae=LATENTS, **copy.deepcopy(fixed), **{price: number})
