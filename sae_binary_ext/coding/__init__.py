"""The mathematics of binary codes, in torch alone."""

from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.covariance import covariance_penalty, sampled_covariance_penalty
from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.entropy import (
    FiringRates,
    bernoulli_entropy,
    burstiness,
    excess_rate,
    firing_rates,
    minibatch_entropy,
    ramp,
)
from sae_binary_ext.coding.initialization import (
    INITIAL_THRESHOLD,
    FittedStart,
    fit_decoder,
    fit_start,
    sample_rows,
    starting_rate,
)
from sae_binary_ext.coding.packing import pack, pack_indices, packed_width, unpack
from sae_binary_ext.coding.selection import (
    SELECTIONS,
    CodeRule,
    pick_latents,
    scatter_codes,
    select_codes,
)
from sae_binary_ext.coding.selections import Selection
from sae_binary_ext.coding.surrogate import SURROGATES, Surrogate, fired, step
from sae_binary_ext.coding.variance import summed_variance, total_variance

__all__ = [
    "INITIAL_THRESHOLD",
    "SELECTIONS",
    "SURROGATES",
    "CodeRule",
    "Encoder",
    "FiringRates",
    "FittedStart",
    "Selection",
    "Surrogate",
    "auxiliary_error",
    "bernoulli_entropy",
    "binarise",
    "burstiness",
    "check_width",
    "covariance_penalty",
    "decode",
    "decode_indices",
    "excess_rate",
    "fired",
    "firing_rates",
    "fit_decoder",
    "fit_start",
    "minibatch_entropy",
    "pack",
    "pack_indices",
    "packed_width",
    "pick_latents",
    "pre_activations",
    "ramp",
    "sample_rows",
    "sampled_covariance_penalty",
    "scatter_codes",
    "select_codes",
    "starting_rate",
    "step",
    "summed_variance",
    "total_variance",
    "unpack",
]
