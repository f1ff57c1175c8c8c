"""The coders whose interpretable latents are counted, and the prices that were searched.

All coders have 2304 latents (expansion 4) for the residual stream that enters layer 9 of SmolLM2,
and see the same tokens.
"""

import copy
from dataclasses import dataclass
from typing import Any

from sae_lens import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAEConfig,
)

from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig

WIDTH, EXPANSION = 576, 4
BATCH, EPOCHS = 1024, 2
# Number of active latents that all families should have. The search of a family ends with a price
# whose L0 is within the factor NEAR of it.
ACTIVE, NEAR = 32, 1.25
# Steps over which the loss on values rises to its full weight, of about 700.
WARM_UP = 100
# SAELens' default norm of 0.1 leaves latents of topk dead, as in the other benchmarks.
NORM = {"decoder_init_norm": 1.0}
# Ways to give tokens to latents. Binary coders have one. Coders with values have the other three,
# one of which reads their active latents alone, by the rule for binary coders.
BURSTINESS, ACTIVE_LATENTS = "burstiness", "active latents"
VALUES, RESCALED = "values", "rescaled"


@dataclass(frozen=True)
class Family:
    """A kind of coder.

    Attributes:
        config: SAELens' config class, or None if the family has no coder: each token is then given
            to random latents.
        lr: learning rate of Adam at the start; None leaves the random weights as they are.
        fields: fields of the config other than widths and price.
        price: name of the field that sets how many latents are active.
        searched: prices to try, in this order, until the L0 on training rows is near ACTIVE. A
            family with one price has no search.
        givings: the ways to give tokens to its latents.
    """

    config: type[TrainingSAEConfig] | None
    lr: float | None
    fields: dict[str, Any]
    price: str
    searched: tuple[float, ...]
    givings: tuple[str, ...] = (ACTIVE_LATENTS, VALUES, RESCALED)


# Where the paper's coder starts: a zero bias, at which half of the tokens activate a latent. Its
# coefficients are of the mean squared error, which is the FVU for inputs of unit variance.
_OF_PAPER: dict[str, Any] = {
    "initial_firing_rate": 0.5,
    "covariance_coefficient": 1e-7,
    "entropy_start_step": 174,
}
_JUMPRELU = NORM | {
    "jumprelu_ste_to_input": True,
    "jumprelu_init_threshold": 0.5,
    "jumprelu_bandwidth": 0.5,
}
_L1 = NORM | {"l1_warm_up_steps": WARM_UP}
_BINARY = (BURSTINESS,)
FAMILIES: dict[str, Family] = {
    "binary": Family(BinaryTrainingSAEConfig, 3e-3, {}, "k", (ACTIVE,), _BINARY),
    "topk": Family(TopKTrainingSAEConfig, 1e-3, NORM, "k", (ACTIVE,)),
    "relu": Family(StandardTrainingSAEConfig, 1e-3, _L1, "l1_coefficient", (6.0, 2.0, 3.0)),
    "binary_entropy": Family(
        BinaryEntropyTrainingSAEConfig, 2e-3, {}, "entropy_coefficient", (5e-4,), _BINARY
    ),
    "gated": Family(GatedTrainingSAEConfig, 1e-3, _L1, "l1_coefficient", (9.0, 3.0, 4.5)),
    "random weights": Family(TopKTrainingSAEConfig, None, NORM, "k", (ACTIVE,), (RESCALED,)),
    "random latents": Family(None, None, {}, "k", (ACTIVE,), ("random",)),
    "jumprelu": Family(JumpReLUTrainingSAEConfig, 1e-3, _JUMPRELU, "l0_coefficient", (1.0,)),
    "paper's setting": Family(
        BinaryEntropyTrainingSAEConfig, 5e-4, _OF_PAPER, "entropy_coefficient", (1e-7,), _BINARY
    ),
}
# Stock families, the best of which is compared with the binary ones.
STOCK = ("topk", "relu", "gated", "jumprelu")
BINARY = ("binary", "binary_entropy")


@dataclass(frozen=True)
class Case:
    """A coder: its family and price (k, or the coefficient of sparsity)."""

    family: str
    price: float

    @property
    def kind(self) -> Family:
        """The settings of the coder's family."""
        return FAMILIES[self.family]

    def config(self) -> TrainingSAEConfig:
        """The coder's config; ValueError if its family has no coder."""
        if self.kind.config is None:
            raise ValueError(f"{self.family}: has no coder, and no config.")
        price: Any = int(self.price) if self.kind.price == "k" else self.price
        return self.kind.config(
            d_in=WIDTH,
            d_sae=EXPANSION * WIDTH,
            # The scale of inputs is estimated in training.
            normalize_activations="expected_average_only_in" if self.kind.lr else "none",
            **copy.deepcopy(self.kind.fields),
            **{self.kind.price: price},
        )


def searched(family: str) -> list[Case]:
    """The cases of a family's search, in order; one case if nothing is searched."""
    return [Case(family, price) for price in FAMILIES[family].searched]
