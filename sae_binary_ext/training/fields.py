"""Training fields with the same names in our configs for SAELens and for sparsify."""

from dataclasses import dataclass


@dataclass
class FiniteFields:
    """The field for activations that are not finite.

    Args:
        skip_non_finite: if True, training leaves out tokens whose activations are NaN or infinite,
            and counts them. On a GPU each step then waits for the step before it. If False, a NaN
            or infinite activation stops training with an error that names the step.
    """

    skip_non_finite: bool = False


@dataclass
class LearningFields:
    """The fields for the decoder bias, for dense and dead latents, and for the decoder at the end.

    Args:
        encoder_trains_b_dec: if True and the encoder subtracts b_dec from the input, b_dec also
            learns through the encoder. SAELens' and sparsify's own coders learn this way. More
            latents then end dead or dense, because this gradient of b_dec is a sum over all
            latents.
        dense_rate: firing rate, between 0 and 1. The dense loss acts on each latent that fires more
            often than this. Rates in one batch are noisy, so the default keeps rates over many
            batches below 0.1.
        refit_tokens: number of tokens that the decoder is refitted to by least squares at the end
            of training, as by sae-binary refit. 0 keeps the trained decoder. None derives it
            (training/derived.py).
        dead_window_tokens: number of training tokens without firing after which a latent counts as
            dead. It replaces the host's own window (dead_feature_window in SAELens, which counts
            steps; dead_feature_threshold in sparsify). 0 keeps the host's. None derives it.
    """

    encoder_trains_b_dec: bool = False
    dense_rate: float = 0.085
    refit_tokens: int | None = None
    dead_window_tokens: int | None = None


@dataclass
class EntropyFields:
    """The fields that say when the entropy and covariance losses act, and on which latents.

    Args:
        covariance_sample: number of latents that each step draws at random, if the coder has more.
            The covariance loss then sums their covariances with all other latents, which estimates
            the full sum without bias. 0 sums over all pairs of latents.
        entropy_start_step: the training step at which both losses start. None derives it
            (training/derived.py).
        entropy_warm_up_steps: number of steps in which both losses rise linearly to full weight.
            None derives it.
    """

    covariance_sample: int = 0
    entropy_start_step: int | None = None
    entropy_warm_up_steps: int | None = None
