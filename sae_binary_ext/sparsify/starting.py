"""Where a binary coder starts in sparsify's Trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_binary_ext.coding import (
    binarise,
    fit_decoder,
    fit_start,
    pre_activations,
    sample_rows,
    starting_rate,
)
from sae_binary_ext.coding.kernels import gather_rows
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from sae_binary_ext.training.untouched import InitialParameters

if TYPE_CHECKING:
    from sae_binary_ext.sparsify.coder import BinarySparseCoder

logger = logging.getLogger(__name__)

# Parameters that sparsify's Trainer sets to means of the first batch.
SET_TO_MEANS = ("b_dec", "encoder.bias")


@dataclass
class Start:
    """What a coder's parameters are before its first batch.

    Attributes:
        initial: what initialisation left; None of a coder that no Trainer has built.
        loaded: load_state_dict was called.
        takes_stock: weights of sparsify's own coder may be loaded (the Trainer's finetune).
        of_stock: such weights were loaded.
        of_binary_file: the weights to be loaded are from a file with a binary activation.
        scaled: the default learning rates are in units of the activations.
        kept: copies of the parameters that the Trainer sets to means, where the user has set some.
    """

    initial: InitialParameters | None = None
    loaded: bool = False
    takes_stock: bool = False
    of_stock: bool = False
    of_binary_file: bool = False
    scaled: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)

    def set_by_user(self, coder: nn.Module) -> list[str]:
        """Names of the parameters that the user has set, apart from log_threshold: the start from
        data keeps the thresholds that it finds.
        """
        names = [name for name, _ in coder.named_parameters()]
        if not self.loaded and self.initial is not None:
            names = self.initial.changed(coder)
        return [name for name in names if name != "log_threshold"]

    def keep(self, coder: nn.Module) -> None:
        """Copy the parameters that sparsify's Trainer is about to overwrite."""
        parameters = dict(coder.named_parameters())
        self.kept = {name: parameters[name].detach().clone() for name in SET_TO_MEANS}

    @torch.no_grad()
    def restore(self, coder: nn.Module) -> None:
        """Set them back."""
        for name, values in self.kept.items():
            coder.get_parameter(name).copy_(values)


def prepare_start(name: str, coder: BinarySparseCoder) -> None:
    """Before a Trainer's first batch: decide whether the coder is started from data.

    Args:
        name: of the coder, for the log.
        coder: its progress and its start are changed.
    """
    chosen = coder.start.set_by_user(coder)
    if not chosen:
        coder.progress.fit_start = coder.cfg.initial_firing_rate != 0
        return
    coder.start.keep(coder)
    coder.progress.fit_start = coder.start.of_stock
    if coder.start.of_stock:
        logger.warning(
            "%s: the weights are of one of sparsify's own coders, which has no thresholds, and "
            "activations other than 0 and 1. Its encoder and decoder directions are kept; biases, "
            "encoder scale and lengths of decoder rows are set on the first batch.",
            name,
        )
        return
    logger.info("%s: %s were set before training and are kept.", name, ", ".join(chosen))


def is_stock(folder: Path) -> bool:
    """Whether the coder in a folder is one of sparsify's own, as far as its config tells."""
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    return config.get("activation") not in SELECTION_OF_ACTIVATION


def with_thresholds(coder: BinarySparseCoder, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict of this coder, its thresholds added if the weights have none.

    Those of the first paper's gumbel_binary files have none, and fire without. Those of sparsify's
    own coders have none either, and become a binary coder's on the first batch.

    Raises:
        ValueError: the weights are of sparsify's own coder, and the Trainer was not asked to
            finetune one.
    """
    lacking = "log_threshold" not in state and {"encoder.weight", "W_dec"} <= set(state)
    coder.start.of_stock = lacking and coder.start.takes_stock
    if not lacking:
        return state
    if coder.start.takes_stock:
        return {**state, "log_threshold": coder.log_threshold}
    if coder.start.of_binary_file and not coder.rule.kind.has_thresholds:
        return {**state, "log_threshold": torch.full_like(coder.log_threshold, -torch.inf)}
    raise ValueError(
        f"The weights {sorted(state)} have no log_threshold, which activation "
        f"{coder.cfg.activation!r} needs. If they are of one of sparsify's own coders and you "
        "want to train a binary coder from them, give their folder as the Trainer's finetune "
        "(--finetune). If they are of the first paper's earliest coders, load them with "
        "sae_binary_ext.checkpoints.load_coder, which says how to add the thresholds."
    )


@torch.no_grad()
def start_from_data(coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Set the parameters of a new coder on its first batch.

    Args:
        coder: as initialised; b_dec as the Trainer set it.
        x: [tokens, d_in].
        y: [tokens, d_in], the target.
    """
    rule, group = coder.rule, coder.progress.group
    rows = gather_rows(sample_rows(x - coder.origin()), group)
    rate = coder.cfg.initial_firing_rate or starting_rate(rule, coder.num_latents)
    start = fit_start(rows, coder.encoder.weight.T, coder.log_threshold, rule, rate)
    coder.encoder.weight.copy_(start.encoder_weight.T)
    coder.encoder.bias.copy_(start.encoder_bias)
    if not coder.cfg.transcode:
        coder.decoder_weight().copy_(start.decoder_weight)
        return
    pre = pre_activations(rows, start.encoder_weight, start.encoder_bias)
    codes = binarise(pre, coder.log_threshold, rule)
    weight, bias = fit_decoder(codes, gather_rows(sample_rows(y), group))
    coder.decoder_weight().copy_(weight)
    coder.b_dec.copy_(bias)


@torch.no_grad()
def start_from_stock(coder: BinarySparseCoder, x: Tensor) -> None:
    """Turn the weights of one of sparsify's own coders into those of a binary one.

    The same latents fire. Each decoder row becomes as long as its latent's contribution is on
    average where it fires. topk and groupmax choose by pre-activation, which stays in proportion;
    for activation binary one cutoff lets k latents a token fire on average.

    Args:
        coder: with a stock coder's encoder, W_dec and b_dec.
        x: [tokens, d_in], the first batch.
    """
    rows = gather_rows(sample_rows(x), coder.progress.group)
    weight, bias = coder.encoder.weight.float(), coder.encoder.bias.float()
    if not coder.cfg.transcode:
        bias = bias - weight @ coder.b_dec.float()
    acts = rows.float() @ weight.T + bias
    scale = acts.std(0).square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    cutoff = torch.zeros_like(scale)
    if coder.rule.kind.alone:
        most = min(coder.cfg.k, coder.num_latents)
        cutoff = acts.topk(most, dim=-1).values[:, -1].mean() / scale
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
