"""Fields of training that both hosts' configs have under one name, described once."""

from dataclasses import dataclass


@dataclass
class FiniteFields:
    """What a run does with activations that are not finite.

    Args:
        skip_non_finite: leave tokens out of training whose activations are NaN or infinite, and
            count them, instead of stopping with an error that names the step. On a GPU each step
            then waits for the one before.
    """

    skip_non_finite: bool = False


@dataclass
class LearningFields:
    """What trains the decoder bias, and which latents are dense.

    Args:
        encoder_trains_b_dec: let b_dec learn through the encoder too, where it is subtracted from
            the input. Stock coders do. More latents then end dead or dense, because its gradient
            there is a sum over all latents.
        dense_rate: firing rate, between 0 and 1, above which the dense loss counts a latent as
            dense. The default keeps rates over many batches below 0.1: those of one batch scatter.
    """

    encoder_trains_b_dec: bool = False
    dense_rate: float = 0.085


@dataclass
class EntropyFields:
    """When the entropy and covariance losses act, and what the second one sums over.

    Args:
        covariance_sample: number of latents whose covariances with all others are summed, drawn
            anew in each step, in coders that have more. The estimate has no bias. 0 sums over all
            pairs.
        entropy_start_step: training step at which both losses start.
        entropy_warm_up_steps: number of steps over which both then rise linearly to their full
            weight.
    """

    covariance_sample: int = 0
    entropy_start_step: int = 0
    entropy_warm_up_steps: int = 0
