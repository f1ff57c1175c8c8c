"""Initial parameters of a binary coder in sparsify's Trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_binary_ext import coding
from sae_binary_ext.coding import binarise, sample_rows
from sae_binary_ext.coding.entropy import batch_tokens
from sae_binary_ext.coding.kernels import gather_rows, sum_over_ranks
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from sae_binary_ext.training.untouched import InitialParameters

if TYPE_CHECKING:
    from sae_binary_ext.sparsify.coder import BinarySparseCoder

logger = logging.getLogger(__name__)

# Parameters that sparsify's Trainer sets to means of the first batch.
SET_TO_MEANS = ("b_dec", "encoder.bias")


@dataclass
class Start:
    """Where a coder's parameters came from before its first batch."""

    # The parameters at the start of training, or None if no Trainer has built the coder.
    initial: InitialParameters | None = None
    # Whether load_state_dict was called.
    loaded: bool = False
    # Whether weights of sparsify's own coder may be loaded (the Trainer's finetune), or were.
    takes_stock: bool = False
    of_stock: bool = False
    # Whether the weights to load are in a file with a binary activation.
    of_binary_file: bool = False
    # Whether the default learning rates are already in units of the activations.
    scaled: bool = False
    # The user's values of parameters that the Trainer sets to means.
    kept: dict[str, Tensor] = field(default_factory=dict)

    def set_by_user(self, coder: nn.Module) -> list[str]:
        """Names of the parameters, except the thresholds, that the user has set."""
        names = [name for name, _ in coder.named_parameters()]
        if not self.loaded and self.initial is not None:
            names = self.initial.changed(coder)
        return [name for name in names if name != "log_threshold"]

    @torch.no_grad()
    def restore(self, coder: nn.Module) -> None:
        """Set back the parameters that sparsify's Trainer has overwritten."""
        for name, values in self.kept.items():
            coder.get_parameter(name).copy_(values)


def prepare_start(name: str, coder: BinarySparseCoder) -> None:
    """Decide whether a Trainer's first batch sets the coder's initial parameters."""
    chosen = coder.start.set_by_user(coder)
    if not chosen:
        coder.progress.fit_start = coder.cfg.initial_firing_rate != 0
        return
    coder.start.kept = {name: coder.get_parameter(name).detach().clone() for name in SET_TO_MEANS}
    coder.progress.fit_start = coder.start.of_stock
    if coder.start.of_stock:
        logger.warning(
            "%s: the weights are those of one of sparsify's own coders. Its encoder and decoder "
            "directions are kept. The first batch sets biases, encoder scale and lengths of "
            "decoder rows.",
            name,
        )
        return
    logger.info("%s: %s were set before training and are kept.", name, ", ".join(chosen))


def is_stock(folder: Path) -> bool:
    """Whether a folder holds the config of one of sparsify's own coders."""
    path = folder / "cfg.json"
    activation = json.loads(path.read_text()).get("activation") if path.is_file() else None
    return activation not in SELECTION_OF_ACTIVATION


def with_thresholds(coder: BinarySparseCoder, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict of this coder, with thresholds added if it has none.

    The first paper's gumbel_binary files have no thresholds: latents fire at any pre-activation.
    sparsify's own coders have no thresholds: the first batch turns their weights into a binary
    coder's. ValueError for sparsify's own coders that are not the Trainer's finetune.
    """
    weights = {"encoder.weight", "W_dec"} & state.keys()
    # A file of a tied coder has one of the two.
    whole = len(weights) == (1 if coder.cfg.tied_decoder else 2)
    lacking = "log_threshold" not in state and whole
    coder.start.of_stock = lacking and coder.start.takes_stock
    if not lacking:
        return state
    if coder.start.takes_stock:
        return {**state, "log_threshold": coder.log_threshold}
    if coder.start.of_binary_file and not coder.rule.kind.has_thresholds:
        return {**state, "log_threshold": torch.full_like(coder.log_threshold, -torch.inf)}
    raise ValueError(
        f"The weights {sorted(state)} have no log_threshold, which activation "
        f"{coder.cfg.activation!r} needs. To train from one of sparsify's own coders, give its "
        "folder as the Trainer's finetune (--finetune). Load the first paper's earliest coders "
        "with sae_binary_ext.checkpoints.load_coder, which says how to add the thresholds."
    )


def with_tied_encoder(coder: BinarySparseCoder, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict for this coder if it is tied: files of tied coders have one weight of the two.

    ValueError if encoder and decoder differ, or if they are those of sparsify's own coder.
    """
    if not coder.cfg.tied_decoder:
        return state
    encoder, decoder = state.get("encoder.weight"), state.get("W_dec")
    if coder.start.of_stock or not (
        encoder is None or decoder is None or torch.equal(encoder, decoder)
    ):
        raise ValueError(
            "tied_decoder=True: the weights hold a decoder that is not the encoder's weight. Leave "
            "tied_decoder out, or start without these weights."
        )
    if coder.W_dec is None and encoder is None:
        return {**state, "encoder.weight": decoder}
    return state


@torch.no_grad()
def start_from_data(coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Set a new coder's parameters from its first batch x and target y, both [tokens, d_in]."""
    rule, group = coder.rule, coder.progress.group
    rows = gather_rows(sample_rows(x - coder.origin()), group)
    rate = coder.setting("initial_firing_rate")
    start = coding.fit_start(rows, coder.encoder.weight.T, coder.log_threshold, rule, rate)
    coder.encoder.weight.copy_(start.encoder_weight.T)
    coder.encoder.bias.copy_(start.encoder_bias)
    if not coder.cfg.transcode:
        coder.decoder_weight().copy_(start.decoder_weight)
        return
    pre = coding.pre_activations(rows, start.encoder_weight, start.encoder_bias)
    codes = binarise(pre, coder.log_threshold, rule)
    weight, bias = coding.fit_decoder(codes, gather_rows(sample_rows(y), group))
    coder.decoder_weight().copy_(weight)
    coder.b_dec.copy_(bias)


@torch.no_grad()
def start_from_stock(coder: BinarySparseCoder, x: Tensor) -> None:
    """Turn the weights of one of sparsify's own coders into those of a binary coder.

    The same latents fire as before. Each decoder row is multiplied by its latent's mean activation
    over the tokens of x [tokens, d_in] on which it fires. topk and groupmax only compare
    pre-activations, which stay in proportion. For activation binary, one cutoff lets about k
    latents fire a token.
    """
    rows = gather_rows(sample_rows(x), coder.progress.group)
    weight, bias = coder.encoder.weight.float(), coder.encoder.bias.float()
    if not coder.cfg.transcode:
        bias = bias - weight @ coder.b_dec.float()
    acts = rows.float() @ weight.T + bias
    scale = acts.std(0).square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    cutoff = torch.zeros_like(scale)
    if coder.rule.kind.alone:
        largest = acts.topk(min(coder.cfg.k, coder.num_latents), dim=-1).values
        cutoff = largest[:, -1].mean() / scale
    shift = coder.log_threshold.float().exp() - cutoff
    codes = binarise(acts / scale + shift, coder.log_threshold.float(), coder.rule)

    fired = codes.sum(0)
    sums = (codes * acts.relu()).sum(0)
    lengths = torch.where(fired > 0, sums / fired.clamp_min(1), sums.sum() / fired.sum())
    coder.decoder_weight().mul_(lengths[:, None])
    coder.encoder.weight.div_(scale)
    bias = bias / scale + shift
    if coder.cfg.centres():
        bias += coder.encoder.weight.float() @ coder.b_dec.float()
    coder.encoder.bias.copy_(bias)


@torch.no_grad()
def mend_start(coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Set biases that are not finite to means over finite tokens x and targets y [tokens, d_in].

    The Trainer's means include tokens that are not finite. All ranks must call this function.
    """
    group = coder.progress.group
    tokens = batch_tokens(len(x), x.device, group)
    if not coder.b_dec.isfinite().all():
        coder.b_dec.copy_(sum_over_ranks(y.sum(0), group) / tokens)
    if not coder.encoder.bias.isfinite().all():
        mean = sum_over_ranks(x.sum(0), group) / tokens
        coder.encoder.bias.copy_(-mean.to(coder.dtype) @ coder.encoder.weight.T)
