"""Reads text once, and keeps windows in which drawn latents are active, and windows of all text."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_binary_ext.commands.interpret.config import TextAmount
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.in_model import codes_of, reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, SavedProgress, fingerprint
from sae_binary_ext.measure.samples import LatentSamples, Reservoir
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# Number of windows kept: for each latent, in which it is active; and from all text.
ACTIVE_WINDOWS, POOLED_WINDOWS = 256, 4096


@dataclass(frozen=True)
class Windows:
    """Windows of a batch of rows. All windows have the same length and do not overlap.

    All fields are int64. rows [windows, 1] and positions [windows, length] say where each window is
    in the batch. tokens are [windows, length], documents [windows].
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    documents: Tensor


def cut_windows(text: TextBatch, first_position: int, length: int) -> Windows:
    """Cut rows into whole windows. The first window of each row starts at first_position."""
    starts = torch.arange(first_position, text.tokens.shape[1] - length + 1, length)
    rows, number = (starts + length <= text.lengths[:, None]).nonzero().unbind(1)
    rows = rows[:, None]
    positions = starts[number][:, None] + torch.arange(length)
    documents = torch.tensor(text.documents)[rows[:, 0]]
    return Windows(rows, positions, text.tokens[rows, positions], documents)


class ActiveWindows(Reservoir):
    """For each of the drawn latents, random windows in which it is active.

    Buffers: documents int64 [latents, most]; tokens int64 and values float32 (codes) [latents,
    most, length]; margins float32 [latents, most], the largest margin of the latent in the window;
    seen int64 [latents], number of windows in which the latent was active.
    """

    documents: Tensor
    tokens: Tensor
    values: Tensor
    margins: Tensor
    seen: Tensor

    def __init__(self, latents: int, length: int) -> None:
        super().__init__(latents, ACTIVE_WINDOWS)
        shape = (latents, ACTIVE_WINDOWS)
        self.register_buffer("documents", torch.full(shape, -1))
        self.register_buffer("tokens", torch.zeros(*shape, length, dtype=torch.long))
        self.register_buffer("values", torch.zeros(*shape, length))
        self.register_buffer("margins", torch.zeros(shape))
        self.register_buffer("seen", torch.zeros(latents, dtype=torch.long))

    def add(self, windows: Windows, values: Tensor, margins: Tensor) -> None:
        """Draw from a batch: codes and margins, float32 [windows, length, latents]."""
        active = (values != 0).any(1)
        self.seen += active.sum(0)
        entries, priorities = self.draw(active)
        latent = torch.arange(values.shape[2])[:, None]
        # Only tokens on which the latent is active count for the largest margin.
        margins = torch.where(values != 0, margins, -torch.inf).amax(1)
        self.keep(
            priorities,
            documents=windows.documents[entries],
            tokens=windows.tokens[entries],
            values=values.permute(2, 0, 1)[latent, entries],
            margins=margins.T[latent, entries],
        )


class WindowPool(Reservoir):
    """Random windows of all text, with the latents that are active in each window.

    Buffers: tokens int64 [1, most, length]; active bool [1, most, latents], the latents of all
    coders side by side.
    """

    tokens: Tensor
    active: Tensor

    def __init__(self, latents: int, length: int) -> None:
        super().__init__(1, POOLED_WINDOWS)
        shape = (1, POOLED_WINDOWS)
        self.register_buffer("tokens", torch.zeros(*shape, length, dtype=torch.long))
        self.register_buffer("active", torch.zeros(*shape, latents, dtype=torch.bool))

    def add(self, windows: Windows, active: Tensor) -> None:
        """Draw from a batch; `active` is bool [windows, latents]."""
        entries, priorities = self.draw(torch.ones(len(active), 1, dtype=torch.bool))
        self.keep(priorities, tokens=windows.tokens[entries], active=active[entries])


class ReadLatents(nn.Module):
    """Firings and windows of the drawn latents of one coder.

    `places` has the indices of the latents, and single tokens for the token baseline. Buffers:
    firings int64 [latents], tokens on which each latent is active; tokens int64, number of tokens
    read.
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
        """Add a batch; returns bool [windows, latents], the latents that are active in each window.

        `where` is bool [rows, context], the positions that count. Codes and margins are float32
        [positions that count, latents], row by row.
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
        """Index, firings and firing rate of a latent, by its place among the drawn latents."""
        firings = int(self.firings[place])
        return int(self.places.latents[place]), firings, firings / int(self.tokens)


class Reading(nn.Module):
    """Firings and windows of all coders on the same tokens, and a pool of windows from all text."""

    def __init__(self, widths: Iterable[int], amount: TextAmount) -> None:
        super().__init__()
        self.coders = [ReadLatents(width, amount) for width in widths]
        self.all_coders = nn.ModuleList(self.coders)
        self.pool = WindowPool(sum(len(each.firings) for each in self.coders), amount.window)

    def silent(self, coder: int) -> Tensor:
        """bool [windows of the pool, latents], true if the latent is silent in the window."""
        numbers = [len(each.firings) for each in self.coders]
        active = self.pool.active[0].split(numbers, dim=1)[coder]
        return ~active & self.pool.there[0][:, None]


def read_latents(
    opened: OpenedModel, amount: TextAmount, saved: Path, sources: tuple[str, ...]
) -> Reading:
    """Read text with one forward pass for all coders. An interrupted run can continue.

    Context size and first position are those of `opened`. `saved` is the file of the counts; counts
    of other `sources` (names of the model and the text) are dropped. ValueError if the model's
    activations do not fit a coder, or there is no text. Ctrl-C saves everything and raises
    KeyboardInterrupt.
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
            rows = batch.found[opened.hooks[candidate.site][0]]
            latents = counts.places.latents
            if reads_sequences(candidate.coder):
                codes = margins = _drawn(codes_of(candidate.coder, rows, batch.where), latents)
            else:
                codes, margins = codes_and_margins(candidate.coder, rows[batch.where], latents)
            active.append(counts.add(text, batch.where, windows, codes, margins))
        reading.pool.add(windows, torch.cat(active, dim=1))

    progress.go_on("read", "Reading", amount.tokens, read)
    return reading


def _drawn(values: Tensor, latents: Tensor) -> Tensor:
    return values[:, latents.to(values.device)].to("cpu", torch.float32)


@torch.no_grad()
def codes_and_margins(coder: Any, inputs: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of some latents, and margins that rank the firings of a latent; both on the CPU.

    The margin of a binary latent is its pre-activation. For topk and groupmax, the highest
    pre-activation of the silent latents is subtracted. A fixed threshold is not subtracted, because
    it does not change the order. The margin of a latent with values is its code. Inputs are
    [tokens, d_in], latents int64 [latents], and the results float32 [tokens, latents].
    """
    inputs = inputs.to(coder.device, torch.float32)
    if not isinstance(coder, BinaryCoder):
        codes = _drawn(coder.encode(inputs), latents)
        return codes, codes
    codes, pre = coder.codes_and_pre_activations(inputs, noise=False)
    margins = _drawn(pre, latents)
    if coder.rule.kind.pick is not None:
        silent = pre.masked_fill_(codes != 0, -torch.inf).amax(1, keepdim=True)
        margins = margins - silent.float().cpu()
    return _drawn(codes, latents), margins
