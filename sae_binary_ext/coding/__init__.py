"""The mathematics of binary codes, in torch alone."""

from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.covariance import covariance_penalty, sampled_covariance_penalty
from sae_binary_ext.coding.decode import decode, decode_indices, prefix_outputs
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.entropy import (
    FiringRates,
    bernoulli_entropy,
    burstiness,
    excess_rate,
    firing_rates,
    follow_prices,
    minibatch_entropy,
    price_of_bits,
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
    Selection,
    pick_latents,
    scatter_codes,
    select_codes,
)
from sae_binary_ext.coding.surrogate import SURROGATES, Surrogate, fired, step
from sae_binary_ext.coding.variance import summed_variance, total_variance

__all__ = ["Encoder", "binarise", "check_width", "decode", "decode_indices", "pre_activations"]
__all__ += ["follow_prices", "prefix_outputs", "price_of_bits"]
__all__ += ["SELECTIONS", "CodeRule", "Selection", "pick_latents", "scatter_codes", "select_codes"]
__all__ += ["SURROGATES", "Surrogate", "fired", "step"]
__all__ += ["FiringRates", "bernoulli_entropy", "burstiness", "excess_rate", "firing_rates"]
__all__ += ["auxiliary_error", "covariance_penalty", "minibatch_entropy", "ramp"]
__all__ += ["sampled_covariance_penalty", "summed_variance", "total_variance"]
__all__ += ["INITIAL_THRESHOLD", "FittedStart", "fit_decoder", "fit_start", "sample_rows"]
__all__ += ["pack", "pack_indices", "packed_width", "starting_rate", "unpack"]
