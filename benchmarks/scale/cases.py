"""The runs of the comparison by training tokens, and the settings that were searched for each.

Every family has the same number of searched settings, for each kind of coder. All were trained on
SEARCH_TOKENS tokens of SEARCH_LAYER, and the best on the rows for choosing is the family's TUNED
settings.
"""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.reconstruction.activations import Site
from benchmarks.reconstruction.cases import Case

LATENTS = 2304
TOKENS = (300_000, 1_000_000, 3_000_000, 10_000_000)
# Only the first seed is trained on more tokens than this.
SEEDS, MOST_TOKENS_OF_SEEDS = (0, 1, 2), 3_000_000
SEARCH_LAYER, SEARCH_TOKENS = 9, 300_000
# Fields of every case of a family, and its searched price: k, or the cost of a bit.
FIXED: dict[str, dict[str, Any]] = {
    "topk": {"decoder_init_norm": 1.0},
    "batchtopk": {"decoder_init_norm": 1.0},
    "jumprelu": {},
    "matching_pursuit": {},
    "binary": {"surrogate_temperature": 0.5, "refit_tokens": 200_000},
    "binary_entropy": {
        "selection": "threshold",
        "initial_firing_rate": 0.01,
        "surrogate_temperature": 0.5,
        "refit_tokens": 200_000,
    },
    "binary_refined": {"refit_tokens": 200_000, "refine_passes": 12, "dense_coefficient": 2e-4},
}
PRICE = {
    "topk": "k",
    "batchtopk": "k",
    "jumprelu": "l0_coefficient",
    "matching_pursuit": "max_iterations",
    "binary": "k",
    "binary_entropy": "entropy_coefficient",
    "binary_refined": "cost_of_bit",
}
SEARCH_PRICE = {
    "topk": 32,
    "batchtopk": 32,
    "jumprelu": 1.0,
    "matching_pursuit": 24,
    "binary": 64,
    "binary_entropy": 2e-4,
    "binary_refined": 3e-4,
}


# Fields that the search has otherwise than FIXED. After 300,000 tokens, this coefficient changes
# neither error nor bits; after 3 million it costs more than a smaller one.
SEARCH_FIELDS: dict[str, dict[str, Any]] = {"binary_refined": {"dense_coefficient": 1e-3}}


# Fields of a family in runs of at least LONG_TOKENS. With those of FIXED, 22 of 2304 latents at
# layer 9 and 162 at layer 20 fire on more than a tenth of the tokens for choosing.
LONG_TOKENS = 3_000_000
LONG_FIELDS: dict[str, dict[str, Any]] = {
    "binary_refined": {"refit_tokens": 600_000, "dense_coefficient": 5e-4, "dense_rate": 0.075}
}

AUTOENCODER, TRANSCODER, SKIP = "autoencoder", "transcoder", "skip transcoder"
# Families of each kind of coder. SAELens has no batchtopk and no matching_pursuit for transcoders.
# No transcoder has refined codes: codes are refined by what the output lacks, and a transcoder does
# not know its target.
_TRANSCODERS = ("topk", "binary", "binary_entropy")
FAMILIES = {AUTOENCODER: tuple(FIXED), TRANSCODER: _TRANSCODERS, SKIP: _TRANSCODERS}
FIELDS_OF_KIND: dict[str, dict[str, Any]] = {SKIP: {"skip_connection": True}}
# Prices of the search, where a kind of coder has others: with a skip connection, far fewer latents
# are worth their bits.
SEARCH_PRICE_OF_KIND: dict[str, dict[str, float]] = {SKIP: {"binary": 32, "binary_entropy": 5e-5}}
# What is searched for each family: learning rate and batch size.
_PAIRS = ((1e-3, 256), (2e-3, 256), (4e-3, 256), (8e-3, 256), (4e-3, 1024))
SEARCHED: dict[str, tuple[tuple[float, int], ...]] = {
    AUTOENCODER: _PAIRS,
    TRANSCODER: _PAIRS,
    SKIP: ((1e-3, 256), (2e-3, 256), (4e-3, 256), (8e-3, 256), (1.6e-2, 256), (8e-3, 1024)),
}
# The window is topk's and batchtopk's best of docs/short-training.md: with 1000 steps, SAELens'
# default, its loss of dead latents hardly acts in short training, and hundreds of latents die.
SETTINGS: dict[str, dict[str, Any]] = {
    **{key: {"adam_beta2": 0.99} for key in FIXED},
    **{key: {"adam_beta2": 0.99, "dead_feature_window": 100} for key in ("topk", "batchtopk")},
}


@dataclass(frozen=True)
class Place:
    """A kind of coder, one of FAMILIES, and its layer in SmolLM2."""

    kind: str
    layer: int

    @property
    def site(self) -> Site:
        """The activations that coders of this place are trained on."""
        return Site(AUTOENCODER if self.kind == AUTOENCODER else TRANSCODER, self.layer)


@dataclass(frozen=True)
class Run:
    """One coder to train: its site, settings, number of training tokens and seed."""

    site: Site
    case: Case
    tokens: int
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return {
            "site": asdict(self.site),
            "tokens": self.tokens,
            "seed": self.seed,
            "settings": self.case.settings(),
        }


def new_case(kind: str, family: str, price: float, **settings: Any) -> Case:
    """A case of a family at a price; settings are fields of Case."""
    fields = {**FIXED[family], **FIELDS_OF_KIND.get(kind, {}), PRICE[family]: price}
    name = f"{family}, {price:g}"
    return Case(name, family, fields, latents=LATENTS, **{**SETTINGS[family], **settings})


def searched(kind: str) -> list[Case]:
    """The cases by which each family's settings were chosen, for a kind of coder."""
    prices = SEARCH_PRICE | SEARCH_PRICE_OF_KIND.get(kind, {})
    cases = [
        new_case(kind, family, prices[family], lr=lr, batch_size=batch)
        for lr, batch in SEARCHED[kind]
        for family in FAMILIES[kind]
    ]
    for case in cases:
        case.fields.update(SEARCH_FIELDS.get(case.family, {}))
    return cases


# The best settings of the search on the rows for choosing, of the families that were searched.
# tests/benchmarks/test_scale.py compares them with the results.
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    AUTOENCODER: {
        "topk": {"lr": 2e-3, "batch_size": 256},
        "batchtopk": {"lr": 4e-3, "batch_size": 256},
        "binary": {"lr": 8e-3, "batch_size": 256},
        "binary_entropy": {"lr": 8e-3, "batch_size": 256},
        "binary_refined": {"lr": 8e-3, "batch_size": 256},
    },
    TRANSCODER: {
        "topk": {"lr": 4e-3, "batch_size": 256},
        "binary": {"lr": 8e-3, "batch_size": 256},
        "binary_entropy": {"lr": 8e-3, "batch_size": 256},
    },
    SKIP: {
        "topk": {"lr": 2e-3, "batch_size": 256},
        "binary": {"lr": 8e-3, "batch_size": 1024},
        "binary_entropy": {"lr": 8e-3, "batch_size": 256},
    },
}
# The prices of each family at a place. With the costs of a bit here, binary coders have about as
# many bits as stock coders of k = 16 to 64, by both ways to count those.
STOCK = {"topk": (16, 32, 64), "batchtopk": (16, 32, 64)}
PRICES: dict[Place, dict[str, tuple[float, ...]]] = {
    Place(AUTOENCODER, 4): {**STOCK, "binary_refined": (1e-4, 2e-4)},
    Place(AUTOENCODER, 9): {
        **STOCK,
        "binary": (64,),
        "binary_entropy": (2e-4,),
        "binary_refined": (1.5e-4, 3e-4),
    },
    Place(AUTOENCODER, 20): {**STOCK, "binary_refined": (2e-4, 4e-4)},
    Place(TRANSCODER, 9): {"topk": (16, 32, 64), "binary": (64,), "binary_entropy": (1e-4, 2e-4)},
    Place(SKIP, 9): {"topk": (8, 16, 32), "binary": (32,), "binary_entropy": (2e-5, 5e-5)},
}


# Families that are also trained with nothing set but the price, the learning rate and the batch
# size, on these numbers of tokens of SEARCH_LAYER.
WITH_DEFAULTS = ("binary", "binary_entropy", "binary_refined")
TOKENS_OF_DEFAULTS = (300_000, 3_000_000)
# How their cases' names end.
DEFAULTS = ", defaults"


def default_case(family: str) -> Case:
    """A family's case of the search with its own fields, and Adam's, left at their defaults."""
    price, tuned = SEARCH_PRICE[family], TUNED[AUTOENCODER][family]
    fields = {PRICE[family]: price}
    name = f"{family}, {price:g}{DEFAULTS}"
    return Case(name, family, fields, latents=LATENTS, adam_beta2=0.999, **tuned)


def default_runs() -> list[Run]:
    """The runs with defaults."""
    site = Place(AUTOENCODER, SEARCH_LAYER).site
    cases = [default_case(family) for family in WITH_DEFAULTS]
    return [Run(site, case, tokens, 0) for tokens in TOKENS_OF_DEFAULTS for case in cases]


def search_runs(kind: str) -> list[Run]:
    """The runs by which each family's settings were chosen, for a kind of coder."""
    site = Place(kind, SEARCH_LAYER).site
    return [Run(site, case, SEARCH_TOKENS, 0) for case in searched(kind)]


def tuned_cases(place: Place, tokens: int) -> list[Case]:
    """The cases of the comparison at a place, of runs of this many tokens."""
    cases = [
        new_case(place.kind, family, price, **TUNED[place.kind][family])
        for family, prices in PRICES[place].items()
        for price in prices
    ]
    if tokens >= LONG_TOKENS:
        for case in cases:
            case.fields.update(LONG_FIELDS.get(case.family, {}))
    return cases


def tuned_runs(place: Place) -> list[Run]:
    """The runs of the comparison at a place."""
    return [
        Run(place.site, case, tokens, seed)
        for seed in SEEDS
        for tokens in TOKENS
        if seed == 0 or tokens <= MOST_TOKENS_OF_SEEDS
        for case in tuned_cases(place, tokens)
    ]
