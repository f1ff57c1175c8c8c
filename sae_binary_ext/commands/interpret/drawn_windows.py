"""One pass over the text: what some latents of each coder do in it."""

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
from sae_binary_ext.measure.stream import TextStream
from sae_binary_ext.saelens.autoencoder import BinaryCoder


class ReadLatents(nn.Module):
    """What was read of one coder's drawn latents.

    Buffers: firings int64 [latents], tokens each is active on; tokens int64, how many were read.

    Attributes:
        places: which latents, and single places for the token baseline.
        windows: stretches of text in which each is active.
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
        """Count one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that count.
            windows: of the rows.
            codes: float32 [positions that count, latents], row by row.
            margins: likewise, by how much each is active.

        Returns:
            bool [windows, latents], which are active in which.
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
        """Of a latent, by its place among those drawn: its number, its firings and firing rate."""
        firings = int(self.firings[place])
        return int(self.places.latents[place]), firings, firings / int(self.tokens)


class Reading(nn.Module):
    """What was read of all coders, on the same tokens.

    Attributes:
        coders: one for each candidate.
        pool: windows of all text, to draw from where a latent is silent.
    """

    def __init__(self, widths: Iterable[int], amount: TextAmount) -> None:
        super().__init__()
        self.coders = [ReadLatents(width, amount) for width in widths]
        self.all_coders = nn.ModuleList(self.coders)
        self.pool = WindowPool(sum(len(each.firings) for each in self.coders), amount.window)

    def silent(self, coder: int) -> Tensor:
        """bool [windows of the pool, latents of one coder], which are silent in which."""
        numbers = [len(each.firings) for each in self.coders]
        active = self.pool.active[0].split(numbers, dim=1)[coder]
        return ~active & self.pool.there[0][:, None]


def read_latents(
    opened: OpenedModel, amount: TextAmount, saved: Path, sources: tuple[str, ...]
) -> Reading:
    """Read text with a forward pass for all coders; what an interruption left is gone on from.

    Args:
        opened: the coders, with their model and text.
        amount: how much of the text; the rows are cut as opened says.
        saved: file for what was read.
        sources: names of the model and the text: what was read of others is not taken up.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the batch is counted and all is saved.
        ValueError: the model's activations do not fit a coder, or there is no text.
    """
    first = opened.first_position
    amount = replace(amount, context_size=opened.context_size, first_position=first)
    reading = Reading([each.coder.cfg.d_sae for each in opened.candidates], amount)
    progress = SavedProgress(saved, fingerprint(opened.candidates, amount, sources), reading)

    def read(text: TextBatch) -> None:
        batch, windows = opened.read(text), cut_windows(text, first, amount.window)
        active: list[Tensor] = []
        for candidate, counts in zip(opened.candidates, reading.coders, strict=True):
            inputs = batch.found[opened.hooks[candidate.site][0]]
            latents = counts.places.latents
            codes, margins = _codes_and_margins(candidate.coder, inputs, batch.where, latents)
            active.append(counts.add(text, batch.where, windows, codes, margins))
        reading.pool.add(windows, torch.cat(active, dim=1))

    TextStream(opened, progress).go_on("read", "Reading", amount.tokens, read)
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
    """float32 [tokens, latents], codes and by how much each latent is active.

    Of binary coders that is how far its pre-activation is above the highest of those that are
    silent, of topk and groupmax, or above nothing: a threshold of its own does not change the
    order. Of others it is the code.
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
