"""Windows of text, with and without active latents, drawn at random from a stream."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import Reservoir

# Windows kept: for each latent with its firings, and from all text.
ACTIVE_WINDOWS, POOLED_WINDOWS = 256, 4096


@dataclass(frozen=True)
class Windows:
    """Windows of a batch of rows. They have one length and do not overlap.

    Attributes:
        rows: int64 [windows, 1], the row of each window.
        positions: int64 [windows, length], positions in that row.
        tokens: int64 [windows, length].
        documents: int64 [windows].
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    documents: Tensor


def cut_windows(text: TextBatch, first_position: int, length: int) -> Windows:
    """All whole windows of rows. The first window of each row starts at first_position."""
    starts = torch.arange(first_position, text.tokens.shape[1] - length + 1, length)
    rows, number = (starts + length <= text.lengths[:, None]).nonzero().unbind(1)
    rows = rows[:, None]
    positions = starts[number][:, None] + torch.arange(length)
    documents = torch.tensor(text.documents)[rows[:, 0]]
    return Windows(rows, positions, text.tokens[rows, positions], documents)


class ActiveWindows(Reservoir):
    """For some latents, windows in which each is active. All are equally likely to be kept.

    Buffers: documents int64 [latents, most]; tokens int64 and values float32 [latents, most,
    length], the latent's code on each token; margins float32 [latents, most], the largest margin of
    the latent in the window; seen int64 [latents], windows in which it was active.

    Args:
        latents: number of latents.
        length: tokens in a window.
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
        """Draw from one more batch.

        Args:
            windows: windows of the batch.
            values: float32 [windows, length, latents], codes on the windows' tokens.
            margins: float32, same shape; a margin counts only where the latent is active.
        """
        active = (values != 0).any(1)
        self.seen += active.sum(0)
        entries, priorities = self.draw(active)
        latent = torch.arange(values.shape[2])[:, None]
        self.keep(
            priorities,
            documents=windows.documents[entries],
            tokens=windows.tokens[entries],
            values=values.permute(2, 0, 1)[latent, entries],
            margins=torch.where(values != 0, margins, -torch.inf).amax(1).T[latent, entries],
        )


class WindowPool(Reservoir):
    """Windows drawn from all text, with the latents active in each.

    Buffers: tokens int64 [1, most, length]; active bool [1, most, latents], the latents of
    all coders side by side.

    Args:
        latents: number of latents of all coders.
        length: tokens in a window.
    """

    tokens: Tensor
    active: Tensor

    def __init__(self, latents: int, length: int) -> None:
        super().__init__(1, POOLED_WINDOWS)
        shape = (1, POOLED_WINDOWS)
        self.register_buffer("tokens", torch.zeros(*shape, length, dtype=torch.long))
        self.register_buffer("active", torch.zeros(*shape, latents, dtype=torch.bool))

    def add(self, windows: Windows, active: Tensor) -> None:
        """Draw from one more batch.

        Args:
            windows: windows of the batch.
            active: bool [windows, latents], the latents of all coders side by side.
        """
        entries, priorities = self.draw(torch.ones(len(active), 1, dtype=torch.bool))
        self.keep(priorities, tokens=windows.tokens[entries], active=active[entries])
