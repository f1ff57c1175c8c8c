"""The mathematics of binary codes, in torch alone."""

from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.encode import (
    binarise,
    check_width,
    encode_indices,
    picks_indices,
    pre_activations,
)
from sae_binary_ext.coding.entropy import (
    FiringRates,
    bernoulli_entropy,
    burstiness,
    covariance_penalty,
    minibatch_entropy,
    ramp,
    total_variance,
)
from sae_binary_ext.coding.finite import FiniteWatch
from sae_binary_ext.coding.initialization import FittedStart, fit_start
from sae_binary_ext.coding.selection import (
    SELECTIONS,
    CodeRule,
    Selection,
    pick_latents,
    scatter_codes,
    select_codes,
)
from sae_binary_ext.coding.surrogate import SURROGATES, step

__all__ = [
    "SELECTIONS",
    "SURROGATES",
    "CodeRule",
    "FiniteWatch",
    "FiringRates",
    "FittedStart",
    "Selection",
    "bernoulli_entropy",
    "binarise",
    "burstiness",
    "check_width",
    "covariance_penalty",
    "decode",
    "decode_indices",
    "encode_indices",
    "fit_start",
    "minibatch_entropy",
    "pick_latents",
    "picks_indices",
    "pre_activations",
    "ramp",
    "scatter_codes",
    "select_codes",
    "step",
    "total_variance",
]
