"""Codes and outputs of any coder that SAELens can attach, from activations of rows of text.

Three kinds take more than encode and decode of single tokens. Temporal coders attend to the tokens
before, so they are given whole rows. Skip transcoders and temporal coders have an output that is
not of their codes alone. Coders of attn.hook_z split heads and join them; here heads lie side by
side already.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE, Transcoder
from sae_lens.saes.temporal_sae import TemporalSAE
from torch import Tensor

from sae_binary_ext.saelens.transcoder_base import SkipConnection

# Of these, the output is decode(encode(x)).
PLAIN_FORWARDS = (SAE.forward, Transcoder.forward, SkipConnection.forward)


@dataclass(frozen=True)
class Applied:
    """What a coder makes of some tokens of a batch.

    Attributes:
        tokens: int64 [tokens], their numbers in the batch.
        codes: [tokens, latents], on the coder's device.
        output: [tokens, d_out], likewise.
        seconds: that encode took.
    """

    tokens: Tensor
    codes: Tensor
    output: Tensor
    seconds: float


def reads_sequences(coder: Any) -> bool:
    """Whether a token's code depends on the tokens before it."""
    return isinstance(coder, TemporalSAE)


def decodes_codes_alone(coder: Any) -> bool:
    """Whether decode gives all of the coder's output."""
    return type(coder).forward in PLAIN_FORWARDS


@contextmanager
def heads_side_by_side(coder: Any) -> Generator[None]:
    """Within it a coder of attn.hook_z takes and gives [..., heads * d_head]."""
    if not getattr(coder, "hook_z_reshaping_mode", False):
        yield
        return
    coder.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        coder.turn_on_forward_pass_hook_z_reshaping()


@torch.no_grad()
def codes_of(coder: Any, rows: Tensor, where: Tensor) -> Tensor:
    """Codes of some tokens.

    Args:
        coder: any SAELens coder.
        rows: [rows, context, d_in], activations of whole rows.
        where: bool [rows, context], the tokens.

    Returns:
        [tokens, latents], row by row, on the coder's device.
    """
    with heads_side_by_side(coder):
        if reads_sequences(coder):
            return coder.encode(_for(coder, rows))[where.to(coder.device)]
        return coder.encode(_for(coder, rows[where]))


@torch.no_grad()
def apply_to_tokens(coder: Any, inputs: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """What a coder makes of single tokens, a part of them at a time.

    Args:
        coder: any SAELens coder that does not read sequences.
        inputs: [tokens, d_in].
        codes_at_once: size of a part, in tokens times latents.

    Raises:
        ValueError: the coder reads sequences.
    """
    if reads_sequences(coder):
        raise ValueError(
            f"{type(coder).__name__}: reads whole sequences, and got single tokens. Measure it "
            "with sae-binary compare, which keeps rows together."
        )
    size = max(codes_at_once // coder.cfg.d_sae, 1)
    for tokens in torch.arange(len(inputs)).split(size):
        codes, output, seconds = _applied(coder, inputs[tokens])
        yield Applied(tokens, codes, output, seconds)


@torch.no_grad()
def apply_to_rows(coder: Any, rows: Tensor, where: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """What a coder that reads sequences makes of some tokens of rows, a few rows at a time.

    Args:
        coder, rows, where: as codes_of takes them.
        codes_at_once: size of a part, in tokens times latents.
    """
    size = max(codes_at_once // (coder.cfg.d_sae * rows.shape[1]), 1)
    first = 0
    for part, there in zip(rows.split(size), where.split(size), strict=True):
        codes, output, seconds = _applied(coder, part)
        tokens = first + torch.arange(int(there.sum()))
        there = there.to(codes.device)
        yield Applied(tokens, codes[there], output[there], seconds)
        first += len(tokens)


@torch.no_grad()
def output_of_changed(coder: Any, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A coder's output with its codes changed.

    Args:
        coder: any SAELens coder.
        rows: [rows, context, d_in].
        change: takes codes [rows, context, latents] and gives them changed.

    Returns:
        [rows, context, d_out], on the coder's device.
    """
    rows = _for(coder, rows)
    with heads_side_by_side(coder):
        changed = change(coder.encode(rows))
        if isinstance(coder, SkipConnection):
            return coder.decode_with_input(changed, rows)
        output = coder.decode(changed)
        if decodes_codes_alone(coder):
            return output
        # What is not of the codes stays as it was.
        return output + coder(rows) - coder.decode(coder.encode(rows))


def _applied(coder: Any, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    inputs = _for(coder, inputs)
    with heads_side_by_side(coder):
        started = _now(coder.device)
        codes = coder.encode(inputs)
        seconds = _now(coder.device) - started
        output = coder.decode(codes) if decodes_codes_alone(coder) else coder(inputs)
    return codes, output, seconds


def _for(coder: Any, inputs: Tensor) -> Tensor:
    return inputs.to(coder.device, torch.float32)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
