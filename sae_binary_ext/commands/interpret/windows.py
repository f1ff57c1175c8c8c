"""Stretches of text in which latents are active, and others, drawn from a stream."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import Reservoir

# Stretches of text kept: of each latent with firings in them, and of all text together.
ACTIVE_WINDOWS, POOLED_WINDOWS = 256, 4096


@dataclass(frozen=True)
class Windows:
    """Stretches of a batch of rows, of one length, none overlapping another.

    Attributes:
        rows: int64 [windows, 1], of each, its row.
        positions: int64 [windows, length], its positions there.
        tokens: int64 [windows, length].
        documents: int64 [windows].
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    documents: Tensor


def cut_windows(text: TextBatch, first_position: int, length: int) -> Windows:
    """All whole windows of rows, the first of each row beginning at first_position."""
    starts = torch.arange(first_position, text.tokens.shape[1] - length + 1, length)
    rows, number = (starts + length <= text.lengths[:, None]).nonzero().unbind(1)
    rows = rows[:, None]
    positions = starts[number][:, None] + torch.arange(length)
    documents = torch.tensor(text.documents)[rows[:, 0]]
    return Windows(rows, positions, text.tokens[rows, positions], documents)


class ActiveWindows(Reservoir):
    """Of some latents windows in which each is active, one as likely as another.

    Buffers: documents int64 [latents, most]; tokens int64 and values float32 [latents, most,
    length], the latent's code on each token; margins float32 [latents, most], the largest margin
    by which it is active there; seen int64 [latents], windows it was active in.

    Args:
        latents: how many.
        length: tokens a window.
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
        """Draw from one batch more.

        Args:
            windows: of the batch.
            values: float32 [windows, length, latents], codes on their tokens.
            margins: likewise; where a latent is silent they do not count.
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
    """Windows drawn from all text, with what is active in them.

    Buffers: tokens int64 [1, most, length]; active bool [1, most, latents], of all coders' latents
    side by side.

    Args:
        latents: of all coders.
        length: tokens a window.
    """

    tokens: Tensor
    active: Tensor

    def __init__(self, latents: int, length: int) -> None:
        super().__init__(1, POOLED_WINDOWS)
        shape = (1, POOLED_WINDOWS)
        self.register_buffer("tokens", torch.zeros(*shape, length, dtype=torch.long))
        self.register_buffer("active", torch.zeros(*shape, latents, dtype=torch.bool))

    def add(self, windows: Windows, active: Tensor) -> None:
        """Draw from one batch more.

        Args:
            windows: of the batch.
            active: bool [windows, latents], of all coders side by side.
        """
        entries, priorities = self.draw(torch.ones(len(active), 1, dtype=torch.bool))
        self.keep(priorities, tokens=windows.tokens[entries], active=active[entries])
