"""Which latents are active in each row, at one bit a latent."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding import pack, unpack

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class PackedCodes:
    """Which latents are active in each row. Rows are tokens, documents or texts.

    packed, uint8 [rows, packed_width(latents)], is on the CPU, as coding.pack makes it.
    """

    packed: Tensor
    latents: int

    @classmethod
    def of(cls, codes: Tensor) -> "PackedCodes":
        """Pack codes [rows, latents] of any dtype; each value but 0 counts as active."""
        return cls(pack(codes).cpu(), codes.shape[1])

    def __len__(self) -> int:
        return len(self.packed)

    def rows(self, chosen: Tensor) -> "PackedCodes":
        """The rows that `chosen` gives, bool [rows] or int64."""
        return PackedCodes(self.packed[chosen], self.latents)

    def active(self, latents: Tensor) -> Tensor:
        """bool [rows, chosen], true where the chosen latents, int64 [chosen], are active."""
        return (self.packed[:, latents // 8] >> (latents % 8).to(torch.uint8)) & 1 != 0

    def parts(self) -> Iterator[Tensor]:
        """Codes of all latents, float32 [rows, latents] of 0 and 1, a part of the rows at once."""
        for part in self.packed.split(ROWS_AT_ONCE):
            yield unpack(part, self.latents)

    def counts(self, marks: Tensor) -> Tensor:
        """float64 [latents, kinds]: rows where a latent is active and a mark, [rows, kinds], is 1.

        float32 sums of a part are exact, because a part has fewer than 2^24 rows.
        """
        counts = torch.zeros(self.latents, marks.shape[1], dtype=torch.float64)
        for codes, of_part in zip(self.parts(), marks.float().split(ROWS_AT_ONCE), strict=True):
            counts += codes.T @ of_part
        return counts


@dataclass(frozen=True)
class LabelledRows:
    """Rows with a label, and the half to which each belongs.

    Attributes:
        labels: bool [rows].
        groups: int64 [rows], the number of a row's document; a text is a document of its own.
        fitting: bool [rows], true for rows that rules are fitted on; the others are measured.
    """

    labels: Tensor
    groups: Tensor
    fitting: Tensor


def half_of_documents(documents: Tensor) -> Tensor:
    """bool [rows], true for rows of half of the documents, drawn at random with seed 0.

    ValueError if there is only one document.
    """
    numbers, own = documents.unique(return_inverse=True)
    if len(numbers) < 2:
        raise ValueError(
            f"tokens: only {len(numbers)} document was read, and rules are fitted on one half of "
            "the documents and measured on the other. Read more tokens, or another dataset."
        )
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    return (order < len(numbers) // 2)[own]
