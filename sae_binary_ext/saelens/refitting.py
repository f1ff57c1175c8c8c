"""Refits decoders of binary coders by least squares, at the end of training or afterwards."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.saelens.autoencoder import BinaryCoder, BinaryTrainingSAE
from sae_binary_ext.saelens.splice import heads_side_by_side
from sae_binary_ext.saelens.transcoder import TranscoderFields
from sae_binary_ext.training.least_squares import PULL, TOKENS_AT_ONCE, DecoderFit, Refit

logger = logging.getLogger(__name__)


@torch.no_grad()
def refit_decoder(
    coder: BinaryCoder, batches: Iterable[tuple[Tensor, Tensor]], pull: float = PULL
) -> Refit:
    """Give a coder the decoder of least squared error for its codes on the tokens of `batches`.

    A skip connection is fitted with it. b_dec is fitted too, unless the coder subtracts b_dec from
    its input: then its codes depend on b_dec, which therefore stays.

    Args:
        coder: a binary autoencoder or transcoder, changed in place.
        batches: inputs [tokens, d_in] and targets [tokens, d_out], a few thousand tokens each; the
            targets of an autoencoder are its inputs.
        pull: how strongly a row is held to its old value, in tokens on which its latent fires.

    Returns:
        The number of tokens that the decoder was fitted to, and the FVU before and after on these
        tokens. The error and the variance are those of normalised tokens, if the coder normalises.

    Raises:
        ValueError: pull is not positive, or there are no batches.
    """
    if not pull > 0:
        raise ValueError(f"pull={pull!r}: give a positive number of tokens.")
    return replace_decoder(fit_codes(coder, batches), coder, pull)


@torch.no_grad()
def fit_codes(coder: BinaryCoder, batches: Iterable[tuple[Tensor, Tensor]]) -> DecoderFit:
    """The sums over tokens of a coder's codes and targets that replace_decoder takes."""
    fit = _new_fit(coder)
    for x, target in batches:
        _add(fit, coder, x, target)
    return fit


@torch.no_grad()
def refit_at_end(trainer: Any) -> None:
    """Refit each coder whose config has refit_tokens on the batches that follow the last step.

    The codes must be those of the final weights. So the sums are taken after the last step, over
    the next batches of the trainer's own stream: no activations are kept, and the encoder has not
    learned from these tokens, unless the text has begun again. A refit that fails is logged and
    leaves the trained decoder, because a run of hours must not be lost.

    Args:
        trainer: SAELens' trainer of one coder or of several, after its fit.
    """
    several = isinstance(trainer, MultiSAETrainer)
    coders: dict[str, Any] = (
        trainer.saes if several else {trainer.sae.cfg.architecture(): trainer.sae}
    )
    tokens: dict[str, int] = {
        name: coder.setting("refit_tokens")
        for name, coder in coders.items()
        if isinstance(coder, BinaryTrainingSAE) and coder.setting("refit_tokens")
    }
    if not tokens:
        return
    try:
        fits = {name: _new_fit(coders[name]) for name in tokens}
        read, most = 0, max(tokens.values())
        with tqdm(total=most, desc="Reading tokens to refit on", leave=False) as progress:
            while read < most and (batch := next(trainer.data_provider, None)) is not None:
                named = {n: batch[trainer.hook_names[n]] if several else batch for n in tokens}
                for name, rows in named.items():
                    if read < tokens[name]:
                        _add_rows(fits[name], coders[name], rows)
                size = len(next(iter(named.values())))
                read += size
                progress.update(size)
        for name, fit in fits.items():
            replace_decoder(fit, coders[name], PULL).log(name)
    except (RuntimeError, ValueError) as error:  # memory, a singular matrix, or no tokens left
        text = "refit_tokens: the refit failed, so the trained decoder stays. Try sae-binary refit."
        logger.error("%s %s", text, error)


def _new_fit(coder: Any) -> DecoderFit:
    skip = skip_weight(coder)
    d_skip = 0 if skip is None else skip.shape[1]
    return DecoderFit(*coder.W_dec.shape, device=coder.W_dec.device, d_skip=d_skip)


def _add_rows(fit: DecoderFit, coder: BinaryTrainingSAE, rows: Tensor) -> None:
    """Add the finite tokens of a batch of training, [tokens, width of its rows]."""
    rows = rows.to(coder.device, coder.dtype)
    for part in rows[rows.isfinite().all(-1)].split(TOKENS_AT_ONCE):
        _add(fit, coder, *coder.input_and_target(part))


def _add(fit: DecoderFit, coder: Any, x: Tensor, target: Tensor) -> None:
    with heads_side_by_side(coder):
        active = coder.encode(x) != 0
        if isinstance(coder.cfg, TranscoderFields):
            fit.add(active, target, None if skip_weight(coder) is None else x)
        else:
            fit.add(active, decoder_target(coder, x, target))


def skip_weight(coder: Any) -> Tensor | None:
    """W_skip [d_out, d_in] of a transcoder with a skip connection, else None."""
    return coder.W_skip if isinstance(coder.cfg, TranscoderFields) else None


def decoder_target(coder: Any, x: Tensor, target: Tensor) -> Tensor:
    """What the sum of active decoder rows and b_dec should give, [tokens, d_out]."""
    if isinstance(coder.cfg, TranscoderFields):
        return target if coder.W_skip is None else target - x @ coder.W_skip.T
    # Take the input in the encoder's form: reshaped and normalised.
    return coder.process_sae_in(x) + coder.b_dec * coder.cfg.apply_b_dec_to_input


def replace_decoder(fit: DecoderFit, coder: Any, pull: float) -> Refit:
    """Give a coder the decoder of least squared error for the sums of fit_codes."""
    fits_bias = not coder.cfg.apply_b_dec_to_input
    skip = skip_weight(coder)
    return fit.replace(coder.W_dec, coder.b_dec, skip, fits_bias=fits_bias, pull=pull)
