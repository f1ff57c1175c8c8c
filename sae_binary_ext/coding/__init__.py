"""The mathematics of binary codes, in torch alone."""

from sae_binary_ext.coding.attach import attach_to_loss, attach_to_output
from sae_binary_ext.coding.auxiliary import auxiliary_error
from sae_binary_ext.coding.codes import pack, pack_indices, packed_width, unpack
from sae_binary_ext.coding.collapse import CollapseWatch
from sae_binary_ext.coding.covariance import covariance_penalty, sampled_covariance_penalty
from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.encode import (
    Encoder,
    active_latents,
    binarise,
    check_width,
    pre_activations,
)
from sae_binary_ext.coding.encoded import Encoded, encode_batch, encode_codes, encode_deferring
from sae_binary_ext.coding.entropy import (
    FiringRates,
    bernoulli_entropy,
    burstiness,
    excess_rate,
    firing_rates,
    minibatch_entropy,
    ramp,
)
from sae_binary_ext.coding.finite import FiniteRows, FiniteWatch, check_finite
from sae_binary_ext.coding.indexed import Picks
from sae_binary_ext.coding.inference import infer_indices, infer_packed
from sae_binary_ext.coding.initialization import (
    INITIAL_THRESHOLD,
    FittedStart,
    fit_decoder,
    fit_start,
    sample_rows,
    starting_rate,
)
from sae_binary_ext.coding.picked import encode_indices, encode_picks, picks_indices
from sae_binary_ext.coding.ranks import gather_rows, sum_over_ranks
from sae_binary_ext.coding.reconstruction import summed_variance, total_variance
from sae_binary_ext.coding.seeding import seeded
from sae_binary_ext.coding.selection import (
    SELECTIONS,
    CodeRule,
    Selection,
    pick_latents,
    scatter_codes,
    select_codes,
)
from sae_binary_ext.coding.surrogate import SURROGATES, fired, step

__all__ = [
    "INITIAL_THRESHOLD",
    "SELECTIONS",
    "SURROGATES",
    "CodeRule",
    "CollapseWatch",
    "Encoded",
    "Encoder",
    "FiniteRows",
    "FiniteWatch",
    "FiringRates",
    "FittedStart",
    "Picks",
    "Selection",
    "active_latents",
    "attach_to_loss",
    "attach_to_output",
    "auxiliary_error",
    "bernoulli_entropy",
    "binarise",
    "burstiness",
    "check_finite",
    "check_width",
    "covariance_penalty",
    "decode",
    "decode_indices",
    "encode_batch",
    "encode_codes",
    "encode_deferring",
    "encode_indices",
    "encode_picks",
    "excess_rate",
    "fired",
    "firing_rates",
    "fit_decoder",
    "fit_start",
    "gather_rows",
    "infer_indices",
    "infer_packed",
    "minibatch_entropy",
    "pack",
    "pack_indices",
    "packed_width",
    "pick_latents",
    "picks_indices",
    "pre_activations",
    "ramp",
    "sample_rows",
    "sampled_covariance_penalty",
    "scatter_codes",
    "seeded",
    "select_codes",
    "starting_rate",
    "step",
    "sum_over_ranks",
    "summed_variance",
    "total_variance",
    "unpack",
]
