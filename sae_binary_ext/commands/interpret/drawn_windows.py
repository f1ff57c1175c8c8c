"""Read text once, and keep firings and windows of some latents of each coder."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_binary_ext.commands.interpret.config import TextAmount
from sae_binary_ext.commands.interpret.windows import (
    ActiveWindows,
    WindowPool,
    Windows,
    cut_windows,
)
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.in_model import codes_of, reads_sequences
from sae_binary_ext.measure.progress import SavedProgress, fingerprint
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.measure.samples import LatentSamples
from sae_binary_ext.saelens.autoencoder import BinaryCoder


class ReadLatents(nn.Module):
    """Firings and windows of the drawn latents of one coder.

    Buffers: firings int64 [latents], tokens on which each is active; tokens int64, tokens read.

    Attributes:
        places: the numbers of the latents, and single tokens for the token baseline.
        windows: windows in which each latent is active.
    """

    firings: Tensor
    tokens: Tensor

    def __init__(self, width: int, amount: TextAmount) -> None:
        super().__init__()
        self.places = LatentSamples(width, amount.latents)
        self.windows = ActiveWindows(len(self.places.latents), amount.window)
        self.register_buffer("firings", torch.zeros(len(self.places.latents), dtype=torch.long))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.long))

    def add(
        self, text: TextBatch, where: Tensor, windows: Windows, codes: Tensor, margins: Tensor
    ) -> Tensor:
        """Count one more batch.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that count.
            windows: windows of the rows.
            codes: float32 [positions that count, latents], row by row.
            margins: float32, same shape, margins of codes_and_margins.

        Returns:
            bool [windows, latents], whether each latent is active in each window.
        """
        self.places.add(text, where, codes)
        self.firings += (codes != 0).sum(0)
        self.tokens += len(codes)
        everywhere = torch.zeros(2, *where.shape, codes.shape[1])
        everywhere[:, where] = torch.stack([codes, margins])
        values, margins = everywhere[:, windows.rows, windows.positions]
        self.windows.add(windows, values, margins)
        return (values != 0).any(1)

    def facts(self, place: int) -> tuple[int, int, float]:
        """Number, firings and firing rate of the latent at a place among those drawn."""
        firings = int(self.firings[place])
        return int(self.places.latents[place]), firings, firings / int(self.tokens)


class Reading(nn.Module):
    """Firings and windows of all coders, on the same tokens.

    Attributes:
        coders: one for each candidate.
        pool: windows of all text, from which silent windows are drawn.
    """

    def __init__(self, widths: Iterable[int], amount: TextAmount) -> None:
        super().__init__()
        self.coders = [ReadLatents(width, amount) for width in widths]
        self.all_coders = nn.ModuleList(self.coders)
        self.pool = WindowPool(sum(len(each.firings) for each in self.coders), amount.window)

    def silent(self, coder: int) -> Tensor:
        """Whether each latent of one coder is silent in each window of the pool.

        Returns:
            bool [windows of the pool, latents].
        """
        numbers = [len(each.firings) for each in self.coders]
        active = self.pool.active[0].split(numbers, dim=1)[coder]
        return ~active & self.pool.there[0][:, None]


def read_latents(
    opened: OpenedModel, amount: TextAmount, saved: Path, sources: tuple[str, ...]
) -> Reading:
    """Read text with one forward pass for all coders. An interrupted run goes on.

    Args:
        opened: the coders, with their model and text.
        amount: how much text to read. Context size and first position are those of opened.
        saved: file of the counts.
        sources: names of the model and the text. Counts of other sources are dropped.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the batch is counted and all is saved.
        ValueError: the model's activations do not fit a coder, or there is no text.
    """
    first = opened.first_position
    amount = replace(amount, context_size=opened.context_size, first_position=first)
    reading = Reading([each.coder.cfg.d_sae for each in opened.candidates], amount)
    of = fingerprint(opened.candidates, amount, sources)
    progress = SavedProgress(opened, saved, of, reading)

    def read(text: TextBatch) -> None:
        batch, windows = opened.read(text), cut_windows(text, first, amount.window)
        active: list[Tensor] = []
        for candidate, counts in zip(opened.candidates, reading.coders, strict=True):
            inputs = batch.found[opened.hooks[candidate.site][0]]
            latents = counts.places.latents
            codes, margins = _codes_and_margins(candidate.coder, inputs, batch.where, latents)
            active.append(counts.add(text, batch.where, windows, codes, margins))
        reading.pool.add(windows, torch.cat(active, dim=1))

    progress.go_on("read", "Reading", amount.tokens, read)
    return reading


def _codes_and_margins(
    coder: Any, rows: Tensor, where: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    if not reads_sequences(coder):
        return codes_and_margins(coder, rows[where], latents)
    codes = codes_of(coder, rows, where)
    codes = codes[:, latents.to(codes.device)].to("cpu", torch.float32)
    return codes, codes


@torch.no_grad()
def codes_and_margins(coder: Any, inputs: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of latents, and margins by which to order a latent's firings.

    The margin of a binary latent is its pre-activation. For topk and groupmax the highest
    pre-activation of the silent latents is subtracted. A constant threshold is not, because it does
    not change the order. The margin of a latent with values is its code.

    Args:
        coder: a coder that needs no context.
        inputs: [tokens, d_in].
        latents: int64 [latents], their numbers.

    Returns:
        Codes and margins, float32 [tokens, latents] on the CPU.
    """
    inputs = inputs.to(coder.device, torch.float32)
    if isinstance(coder, BinaryCoder):
        codes, margins = coder.codes_and_pre_activations(inputs, noise=False)
        if coder.rule.kind.pick is not None:
            margins = margins - torch.where(codes == 0, margins, -torch.inf).amax(1, keepdim=True)
    else:
        codes = margins = coder.encode(inputs)
    drawn = latents.to(codes.device)
    return codes[:, drawn].to("cpu", torch.float32), margins[:, drawn].to("cpu", torch.float32)
