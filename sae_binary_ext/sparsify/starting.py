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
    """Where a coder's parameters come from, before its first batch.

    Attributes:
        initial: the initial parameters. None if no Trainer has built the coder.
        loaded: load_state_dict was called.
        takes_stock: weights of sparsify's own coder may be loaded (the Trainer's finetune).
        of_stock: weights of sparsify's own coder were loaded.
        of_binary_file: the weights to load are in a file with a binary activation.
        scaled: the default learning rates are already in units of the activations.
        kept: the user's values of parameters that the Trainer sets to means.
    """

    initial: InitialParameters | None = None
    loaded: bool = False
    takes_stock: bool = False
    of_stock: bool = False
    of_binary_file: bool = False
    scaled: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)

    def set_by_user(self, coder: nn.Module) -> list[str]:
        """Names of the parameters that the user has set, without log_threshold.

        The start from data keeps thresholds, so they do not count.
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
        """Set the copied parameters back."""
        for name, values in self.kept.items():
            coder.get_parameter(name).copy_(values)


def prepare_start(name: str, coder: BinarySparseCoder) -> None:
    """Decide, before a Trainer's first batch, whether data set the coder's initial parameters.

    Args:
        name: the coder's, for the log.
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
            "%s: the weights are those of one of sparsify's own coders, which has no thresholds "
            "and whose activations are not 0 or 1. Its encoder and decoder directions are kept. "
            "The first batch sets biases, encoder scale and lengths of decoder rows.",
            name,
        )
        return
    logger.info("%s: %s were set before training and are kept.", name, ", ".join(chosen))


def is_stock(folder: Path) -> bool:
    """Whether the config in a folder is that of one of sparsify's own coders."""
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    return config.get("activation") not in SELECTION_OF_ACTIVATION


def with_thresholds(coder: BinarySparseCoder, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict of this coder, with thresholds added if it has none.

    The first paper's gumbel_binary files have none: their latents fire at any pre-activation.
    sparsify's own coders have none: the first batch makes their weights those of a binary coder.

    Raises:
        ValueError: the weights are those of sparsify's own coder, but the Trainer's finetune does
            not name it.
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
        coder: new. The Trainer has set b_dec.
        x: [tokens, d_in].
        y: target [tokens, d_in].
    """
    rule, group = coder.rule, coder.progress.group
    rows = gather_rows(sample_rows(x - coder.origin()), group)
    rate = coder.cfg.initial_firing_rate or coding.starting_rate(rule, coder.num_latents)
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

    The same latents fire. A decoder row is multiplied by its latent's mean activation over the
    tokens where it fires. topk and groupmax compare pre-activations, which stay in proportion. For
    activation binary, one cutoff lets about k latents fire on a token.

    Args:
        coder: has a stock coder's encoder, W_dec and b_dec.
        x: first batch [tokens, d_in].
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


@torch.no_grad()
def mend_start(coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Set biases that are not finite to the means that the Trainer set them to.

    The Trainer takes the means of the whole first batch, tokens that are not finite included. All
    ranks call this.

    Args:
        coder: its biases are changed in place.
        x: finite tokens [tokens, d_in].
        y: their targets [tokens, d_in], finite.
    """
    group = coder.progress.group
    tokens = batch_tokens(len(x), x.device, group)
    if not coder.b_dec.isfinite().all():
        coder.b_dec.copy_(sum_over_ranks(y.sum(0), group) / tokens)
    if not coder.encoder.bias.isfinite().all():
        mean = sum_over_ranks(x.sum(0), group) / tokens
        coder.encoder.bias.copy_(-mean.to(coder.dtype) @ coder.encoder.weight.T)
