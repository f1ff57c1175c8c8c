"""The cases that the comparison trains at its sites with several seeds, one line each."""

import itertools
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)

from benchmarks.reconstruction.activations import MAIN_SITE, Site, Split
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    RefinedTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)

LATENTS = 4608
# Bits that are counted for each value, if a coder's active latents have values.
BITS_A_VALUE = 8
# Config classes of each family: one for autoencoders, and one for transcoders if there is one.
CONFIGS: dict[str, tuple[type[TrainingSAEConfig], ...]] = {
    "topk": (TopKTrainingSAEConfig, TopKTranscoderTrainingSAEConfig),
    "binary": (BinaryTrainingSAEConfig, BinaryTranscoderTrainingSAEConfig),
    "binary_entropy": (BinaryEntropyTrainingSAEConfig, BinaryTranscoderTrainingSAEConfig),
    "binary_refined": (RefinedTrainingSAEConfig,),
    "batchtopk": (BatchTopKTrainingSAEConfig,),
    "jumprelu": (JumpReLUTrainingSAEConfig,),
    "matching_pursuit": (MatchingPursuitTrainingSAEConfig,),
}
# Families whose active latents have values.
WITH_VALUES = ("topk", "batchtopk", "jumprelu", "matching_pursuit")


# Cases are compared by identity, because their dict of fields has no hash.
@dataclass(frozen=True, eq=False)
class Case:
    """The settings of one row of the comparison.

    Attributes:
        name: says how the case differs from the default.
        family: a key of CONFIGS.
        fields: fields of the config other than sizes and normalisation.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        batch_size: tokens per step.
        adam_beta2: Adam's second decay rate.
        dead_feature_window: steps without firing after which a latent counts as dead in training.
        refits: whether the decoder is refitted on the training tokens at the end.
        latents: width of the code.
    """

    name: str
    family: str
    fields: dict[str, Any] = field(default_factory=dict)
    lr: float = 6e-3
    batch_size: int = 256
    adam_beta2: float = 0.99
    dead_feature_window: int = 1000
    refits: bool = False
    latents: int = LATENTS

    def settings(self) -> dict[str, Any]:
        """All settings that decide the result, except the site and the seed."""
        settings = asdict(self)
        del settings["name"]
        return settings

    def new_coder(self, site: Site, split: Split) -> TrainingSAE[Any]:
        """An untrained coder of this case for a site."""
        transcodes = site.kind == "transcoder"
        width = split.train.shape[-1] // (1 + transcodes)
        fields = {"normalize_activations": "expected_average_only_in", **self.fields}
        config = CONFIGS[self.family][transcodes](d_in=width, d_sae=self.latents, **fields)
        return TrainingSAE.from_dict(config.to_dict())

    @property
    def stores_values(self) -> bool:
        """Whether active latents have values other than 1."""
        return self.family in WITH_VALUES

    def bits(self, entropy_bits: float, l0: float) -> float:
        """Bits to describe a token: which latents are active, and the values stored. A stock coder
        stores one per active latent; layer_norm stores two, the input's mean and deviation."""
        by_token = self.fields.get("normalize_activations") == "layer_norm"
        return entropy_bits + BITS_A_VALUE * (l0 * self.stores_values + 2 * by_token)


def _entropy(coefficient: str, name: str = "", **fields: Any) -> Case:
    """A case with the entropy loss. Its selection is threshold if the fields name no other."""
    settings = {"selection": "threshold", "initial_firing_rate": 0.01} | NARROW | fields
    settings["entropy_coefficient"] = float(coefficient)
    return Case(f"entropy, {coefficient} a bit{name}", "binary_entropy", settings)


def sparing(coefficient: str, name: str = "", **fields: Any) -> Case:
    """A case with the entropy loss, a loss on dense latents, and a refitted decoder."""
    fields = {"dense_coefficient": 4e-3, "dense_rate": 0.085} | fields
    return replace(_entropy(coefficient, f", none dense{name}, refitted", **fields), refits=True)


def _topk(learn: str, name: str = "", **fields: Any) -> Case:
    """A case of `binary` with k = 32 that does not revive dead latents."""
    settings = {"k": 32, "surrogate_latents": learn, "pre_act_loss_coefficient": 0.0}
    return Case(f"k=32, {learn} learn{name}", "binary", settings | NARROW | fields)


def _near(k: int, name: str = "", **fields: Any) -> Case:
    """A case of `binary` in which near latents learn and dead latents are revived."""
    case = _topk("near", name, **{"k": k, "pre_act_loss_coefficient": 1e-4} | fields)
    return replace(case, name=f"k={k}, near learn{name}", dead_feature_window=10)


def _stock(k: int, name: str = "", **settings: Any) -> Case:
    # SAELens' default norm of 0.1 left most of topk's latents dead (see commands/demo/coders.py).
    # With a window of 1000 steps, the default, the loss of dead latents hardly acts in 2788 steps.
    fields = {"k": k, "decoder_init_norm": 1.0}
    settings = {"lr": 1e-3, "adam_beta2": 0.999, "dead_feature_window": 100} | settings
    return Case(f"topk, k={k}{name}", "topk", fields, **settings)


# Half the default width of the surrogate.
NARROW = {"surrogate_temperature": 0.5}
EVERYWHERE = [_stock(32), sparing("1.85e-4")]
MANY_BITS = sparing("8e-5")
LAYER_NORM = sparing("4.3e-4", ", layer_norm", normalize_activations="layer_norm")
SOME_DENSE = replace(_entropy("4e-4", ", refitted"), refits=True)
FEW_BITS = sparing("4.3e-4")
NEAR = replace(_near(32, ", refitted"), refits=True)
OF_KIND = {
    "autoencoder": [FEW_BITS, NEAR],
    # At the default learning rate of 6e-3 a quarter of a transcoder's latents die.
    "transcoder": [MANY_BITS, replace(_near(32, ", lr 2e-3, refitted"), lr=2e-3, refits=True)],
}
# More cases at single sites, with about as many bits as stock topk has there.
OF_SITE = {
    Site("autoencoder", 4): [sparing("1.2e-4"), SOME_DENSE],
    Site("transcoder", 9): [sparing("6.5e-5"), FEW_BITS, NEAR],
    Site("transcoder", 20): [sparing("2e-4")],
    Site("autoencoder", 20): [
        LAYER_NORM,
        sparing("3e-4", ", layer_norm", normalize_activations="layer_norm"),
        SOME_DENSE,
    ],
}
# More points for the curves of FVU by bits, and cases that change one setting at a time.
MAIN_SITE_ONLY = [
    _stock(16),
    _stock(64),
    MANY_BITS,
    sparing("9e-5"),
    LAYER_NORM,
    *(
        replace(_entropy(coefficient, ", refitted"), refits=True)
        for coefficient in ("5e-4", "4.3e-4", "2e-4", "9e-5", "8e-5")
    ),
    SOME_DENSE,
    *(_stock(k, ", lr 2e-3", lr=2e-3, adam_beta2=0.99) for k in (16, 32, 64)),
    *(_stock(k, ", dead after 1000 steps", dead_feature_window=1000) for k in (16, 32, 64)),
    _entropy("4e-4"),
    _entropy("4e-4", ", encoder trains b_dec", encoder_trains_b_dec=True),
    _entropy("4e-4", ", b_dec not subtracted", apply_b_dec_to_input=False),
    _entropy("4e-4", ", T=1", surrogate_temperature=1.0),
    replace(_entropy("4e-4", ", lr 2e-3"), lr=2e-3),
    replace(_entropy("4e-4", ", batch of 1024"), batch_size=1024),
    _entropy("4e-4", ", k=64, all learn", selection="topk", k=64, surrogate_latents="all"),
    _near(32),
    _near(32, ", T=1", surrogate_temperature=1.0),
    _near(32, ", encoder trains b_dec", encoder_trains_b_dec=True),
    _topk("near", ", dead left alone"),
    replace(_near(32, ", few fire at the start, refitted", initial_firing_rate=0.01), refits=True),
    replace(_topk("all", ", refitted", initial_firing_rate=0.01), refits=True),
    _topk("selected"),
    replace(_topk("selected", ", T=1, lr 2e-3", surrogate_temperature=1.0), lr=2e-3),
    _stock(32, ", batch of 1024", batch_size=1024),
]


OF_SITE[MAIN_SITE] = MAIN_SITE_ONLY


def cases_of(site: Site) -> list[Case]:
    """The cases to train at this site."""
    return EVERYWHERE + OF_KIND[site.kind] + OF_SITE.get(site, [])


def all_cases() -> list[Case]:
    """All cases of all sites, each of them once."""
    of_some = itertools.chain(*OF_KIND.values(), *OF_SITE.values())
    return list(dict.fromkeys(itertools.chain(EVERYWHERE, of_some)))
