"""The runs of the comparison by training tokens, and the settings that were searched for each.

Every family has the same number of searched settings at SEARCH_SITE. All were trained on
SEARCH_TOKENS tokens, and the best on the rows for choosing is the family's TUNED settings.
"""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.reconstruction.activations import Site
from benchmarks.reconstruction.cases import Case

LATENTS = 2304
TOKENS = (300_000, 1_000_000, 3_000_000, 10_000_000)
# Only the first seed is trained on more tokens than this.
SEEDS, MOST_TOKENS_OF_SEEDS = (0, 1, 2), 3_000_000
SEARCH_SITE, SEARCH_TOKENS = Site("autoencoder", 9), 300_000
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


# What is searched for each family: learning rate and batch size.
SEARCHED = ((1e-3, 256), (2e-3, 256), (4e-3, 256), (8e-3, 256), (4e-3, 1024))
# The window is topk's and batchtopk's best of docs/short-training.md: with 1000 steps, SAELens'
# default, its loss of dead latents hardly acts in short training, and hundreds of latents die.
SETTINGS: dict[str, dict[str, Any]] = {
    **{key: {"adam_beta2": 0.99} for key in FIXED},
    **{key: {"adam_beta2": 0.99, "dead_feature_window": 100} for key in ("topk", "batchtopk")},
}


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


def new_case(family: str, price: float, **settings: Any) -> Case:
    """A case of a family at a price; settings are fields of Case."""
    fields = {**FIXED[family], PRICE[family]: price}
    name = f"{family}, {price:g}"
    return Case(name, family, fields, latents=LATENTS, **{**SETTINGS[family], **settings})


def searched() -> list[Case]:
    """The cases by which each family's settings were chosen."""
    cases = [
        new_case(family, price, lr=lr, batch_size=batch)
        for lr, batch in SEARCHED
        for family, price in SEARCH_PRICE.items()
    ]
    for case in cases:
        case.fields.update(SEARCH_FIELDS.get(case.family, {}))
    return cases


# The best settings of the search on the rows for choosing, of the families that were searched.
# tests/benchmarks/test_scale.py compares them with the results.
TUNED: dict[str, dict[str, Any]] = {
    "topk": {"lr": 2e-3, "batch_size": 256},
    "batchtopk": {"lr": 4e-3, "batch_size": 256},
    "binary": {"lr": 8e-3, "batch_size": 256},
    "binary_entropy": {"lr": 8e-3, "batch_size": 256},
    "binary_refined": {"lr": 8e-3, "batch_size": 256},
}
# The prices of each family at a site. Costs of a bit are such that binary coders have about as many
# bits as stock coders of k = 16 to 64, by both ways to count those. There is no stock batchtopk and
# no refined code for transcoders: codes are refined by what the output lacks, and a transcoder does
# not know its target.
STOCK = {"topk": (16, 32, 64), "batchtopk": (16, 32, 64)}
PRICES: dict[Site, dict[str, tuple[float, ...]]] = {
    Site("autoencoder", 4): {**STOCK, "binary_refined": (1e-4, 2e-4)},
    Site("autoencoder", 9): {
        **STOCK,
        "binary": (64,),
        "binary_entropy": (2e-4,),
        "binary_refined": (1.5e-4, 3e-4),
    },
    Site("autoencoder", 20): {**STOCK, "binary_refined": (2e-4, 4e-4)},
    Site("transcoder", 9): {"topk": (16, 32, 64), "binary": (64,), "binary_entropy": (1e-4, 2e-4)},
}


def search_runs() -> list[Run]:
    """The runs by which each family's settings were chosen."""
    return [Run(SEARCH_SITE, case, SEARCH_TOKENS, 0) for case in searched()]


def tuned_cases() -> list[tuple[Site, Case]]:
    """The cases of the comparison, each with the site it is trained at."""
    return [
        (site, new_case(family, price, **TUNED[family]))
        for site, families in PRICES.items()
        for family, prices in families.items()
        for price in prices
    ]


def all_runs() -> list[Run]:
    """All runs of the comparison and of the search."""
    runs = [
        Run(site, case, tokens, seed)
        for seed in SEEDS
        for tokens in TOKENS
        if seed == 0 or tokens <= MOST_TOKENS_OF_SEEDS
        for site, case in tuned_cases()
    ]
    return [*search_runs(), *runs]
