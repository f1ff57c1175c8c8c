"""Training fields with the same name in both hosts' configs, described once."""

from dataclasses import dataclass


@dataclass
class FiniteFields:
    """The field for activations that are not finite.

    Args:
        skip_non_finite: if True, training leaves out tokens whose activations are NaN or infinite,
            and counts them. On a GPU each step then waits for the one before. If False, such a
            token stops training with an error that names the step.
    """

    skip_non_finite: bool = False


@dataclass
class LearningFields:
    """The fields for the decoder bias and for dense latents.

    Args:
        encoder_trains_b_dec: if True, b_dec also learns through the encoder, if the encoder
            subtracts it from the input. Stock coders learn this way. More latents then end dead or
            dense, because this gradient of b_dec is a sum over all latents.
        dense_rate: firing rate, between 0 and 1. The dense loss acts on each latent above it. The
            rates of one batch scatter, so the default keeps rates over many batches below 0.1.
    """

    encoder_trains_b_dec: bool = False
    dense_rate: float = 0.085


@dataclass
class EntropyFields:
    """The fields that say when the entropy and covariance losses act, and on which latents.

    Args:
        covariance_sample: number of latents that each step draws at random, if the coder has more.
            The covariance loss then sums their covariances with all other latents, which estimates
            the full sum without bias. 0 takes the sum over all pairs.
        entropy_start_step: the training step at which both losses start.
        entropy_warm_up_steps: number of steps in which both losses rise linearly to full weight.
    """

    covariance_sample: int = 0
    entropy_start_step: int = 0
    entropy_warm_up_steps: int = 0
