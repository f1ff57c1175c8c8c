"""What is compared: one line a case, shared by all sites and seeds."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sae_lens import TopKTrainingSAEConfig, TrainingSAE, TrainingSAEConfig

from benchmarks.reconstruction.activations import Site, Split
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)

LATENTS = 4608
# What a coder with values is taken to store of each.
BITS_A_VALUE = 8
# Of each family its config for autoencoders and for transcoders.
CONFIGS: dict[str, tuple[type[TrainingSAEConfig], type[TrainingSAEConfig]]] = {
    "topk": (TopKTrainingSAEConfig, TopKTranscoderTrainingSAEConfig),
    "binary": (BinaryTrainingSAEConfig, BinaryTranscoderTrainingSAEConfig),
    "binary_entropy": (BinaryEntropyTrainingSAEConfig, BinaryTranscoderTrainingSAEConfig),
}


@dataclass(frozen=True)
class Case:
    """One row of the comparison.

    Attributes:
        name: what is unusual about it.
        family: a key of CONFIGS.
        fields: of the config, beside its sizes and normalisation.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        batch_size: tokens a step.
        adam_beta2: Adam's second decay.
        refits: whether the decoder is refitted on the training tokens at the end.
        everywhere: whether it is run at every site, or as an autoencoder of layer 9 alone.
    """

    name: str
    family: str
    fields: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3
    batch_size: int = 256
    adam_beta2: float = 0.99
    refits: bool = False
    everywhere: bool = False

    def settings(self) -> dict[str, Any]:
        """All that decides the result, but the site and the seed."""
        kept = {name: value for name, value in asdict(self).items() if name != "everywhere"}
        return kept | {"latents": LATENTS}

    def new_coder(self, site: Site, split: Split) -> TrainingSAE[Any]:
        """An untrained coder for a site."""
        transcodes = site.kind == "transcoder"
        width = split.train.shape[-1] // (1 + transcodes)
        fields = {"normalize_activations": "expected_average_only_in", **self.fields}
        config = CONFIGS[self.family][transcodes](d_in=width, d_sae=LATENTS, **fields)
        return TrainingSAE.from_dict(config.to_dict())

    def bits(self, entropy_bits: float, l0: float) -> float:
        """Description length in bits a token: which latents are active, and their values."""
        return entropy_bits + (BITS_A_VALUE * l0 if self.family == "topk" else 0.0)


def _entropy(entropy_coefficient: float, **fields: Any) -> dict[str, Any]:
    """Fields of a coder with the entropy loss, thresholds unless they say otherwise."""
    return {
        "selection": "threshold",
        "entropy_coefficient": entropy_coefficient,
        "initial_firing_rate": 0.01,
        **fields,
    }


# SAELens' default norm of 0.1 left most of topk's latents dead (see demo/coders.py).
STOCK: dict[str, Any] = {
    "family": "topk",
    "lr": 1e-3,
    "adam_beta2": 0.999,
}
CASES = [
    *(
        Case(
            f"topk, k={k}",
            fields={"k": k, "decoder_init_norm": 1.0},
            everywhere=True,
            **STOCK,
        )
        for k in (16, 32, 64)
    ),
    *(
        Case(
            f"entropy, {coefficient} a bit",
            "binary_entropy",
            _entropy(float(coefficient)),
            everywhere=True,
        )
        for coefficient in ("5e-4", "1e-3", "2e-4")
    ),
    Case(
        "k=64, all learn, entropy, 5e-4 a bit",
        "binary_entropy",
        _entropy(5e-4, selection="topk", k=64, surrogate_latents="all"),
        everywhere=True,
    ),
    Case("k=32", "binary", {"k": 32}, everywhere=True),
    Case(
        "k=32, all learn",
        "binary",
        {"k": 32, "surrogate_latents": "all", "initial_firing_rate": 0.01},
    ),
    Case(
        "topk, k=32, batch of 1024",
        fields={"k": 32, "decoder_init_norm": 1.0},
        batch_size=1024,
        **STOCK,
    ),
    Case("k=32, batch of 1024", "binary", {"k": 32}, lr=3e-3, batch_size=1024),
    Case(
        "k=32, all learn, refitted",
        "binary",
        {"k": 32, "surrogate_latents": "all", "initial_firing_rate": 0.01},
        refits=True,
    ),
    Case("entropy, 5e-4 a bit, refitted", "binary_entropy", _entropy(5e-4), refits=True),
]
