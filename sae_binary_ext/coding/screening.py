"""The largest margins of each token, most of them told apart by a product in bfloat16.

Processors with instructions for bfloat16 multiply it several times as fast as float32. The product
of a token x and a latent's weights w, rounded to xr and wr, bounds theirs (Cauchy and Schwarz):

    x . w <= xr . wr + |x - xr| |wr| + |x| |w - wr|

All of it and the bias are one product of wider factors. The latents of the largest bounds are the
candidates, whose margins are computed in float32. A token's pick of them is proven where its
smallest margin is above every other latent's bound. The picks of the few other tokens are made from
all of their margins in float32: the picks are the k largest margins in float32 in any case.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_binary_ext.coding.encode import Encoder, block_rows, margins_in_parts, product_dtype
from sae_binary_ext.coding.indexed import Picks
from sae_binary_ext.coding.largest import largest
from sae_binary_ext.coding.parts import cached_parts, rows_of_part
from sae_binary_ext.coding.processor import multiplies_bfloat16
from sae_binary_ext.coding.selection import pick_and_next

# Fewer tokens, or fewer values a product, do not make up for rounding the weights.
FEWEST_TOKENS, FEWEST_DIMENSIONS = 1024, 256
# Latents for each candidate, at least: with 12.6 bounds take 0.87 of the time that all margins do,
# with 10.3 0.93, with 6.6 1.07 (2304 latents, 4096 tokens).
FEWEST_LATENTS = 11
# Candidates for each latent that is picked, at least.
MORE_CANDIDATES = 1.25
# Tokens that tell how many candidates are needed. What nine tenths of them need, and a tenth more,
# proves the picks of all but 2% (normal random numbers, and SmolLM2's layer 9 with the demo's coder
# or random weights, k = 16 to 128), and the few tokens that would need thousands have no say. Ten
# more candidates a token take as long as all margins of 2% of tokens.
PROBED, PROVEN, SPARE = 64, 0.9, 1.1
# Further columns of both factors: of the bias, in two numbers and a bound of what these leave, and
# of the two norms.
COLUMNS = 5
# What exceeds a number by this share is no smaller once rounded to bfloat16's 8 bits.
BFLOAT16 = 2.0**-7


def pick(encoder: Encoder, more: int = 0) -> tuple[Tensor, Tensor]:
    """The latents that the encoder's rule picks and those that come after.

    Args:
        encoder: its selection picks a fixed number of latents.
        more: how many come after these, with topk alone.

    Returns:
        Margins, without gradient, and their latents, both [tokens, k + more], the k picked first.
    """
    return (pick_screened if may_screen(encoder, more) else pick_from_all)(encoder, more)


@torch.no_grad()
def pick_from_all(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """What pick returns, from all margins."""
    parts = margins_in_parts(encoder)
    values, index = _joined(pick_and_next(margin, encoder.rule, more) for margin in parts)
    return values, index


@torch.no_grad()
def pick_screened(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """What pick returns, from the margins of candidates where bounds tell enough.

    Args:
        encoder: of selection topk, in float32, with more than k + more latents.
        more: how many come after the k picked.
    """
    screen = Screen.of(encoder)
    rows, k = encoder.centred.reshape(-1, encoder.centred.shape[-1]), encoder.rule.k
    count = screen.needed_candidates(rows[:PROBED], k, more)
    if count * FEWEST_LATENTS > encoder.latents:
        return pick_from_all(encoder, more)
    # Of equal size: small products are slow ones.
    blocks = rows.chunk(math.ceil(len(rows) / block_rows(encoder.latents)))
    room = screen.room(len(blocks[0]))
    picked = (screen.pick(block, k, more, count, room[: len(block)]) for block in blocks)
    values, index, proven = _joined(picked)
    others = (~proven).nonzero().squeeze(-1)
    if len(others):
        of_others = pick_from_all(replace(encoder, centred=rows[others]), more)
        values[others], index[others] = of_others
    return values, index


def may_screen(encoder: Encoder, more: int) -> bool:
    """Whether pick_screened takes this encoder and is expected to be faster."""
    d_in, latents = encoder.weight.shape
    return (
        encoder.rule.selection == "topk"
        and encoder.weight.device.type == "cpu"
        and encoder.centred.dtype == encoder.weight.dtype == torch.float32
        and product_dtype(encoder.centred) == torch.float32
        and not torch.compiler.is_compiling()
        and encoder.centred.numel() >= FEWEST_TOKENS * d_in
        and d_in >= FEWEST_DIMENSIONS
        and MORE_CANDIDATES * (encoder.rule.k + more) * FEWEST_LATENTS <= latents
        and multiplies_bfloat16()
    )


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    return (torch.cat(each) for each in zip(*parts, strict=True))


@dataclass(frozen=True)
class Screen:
    """An encoder's weights, rounded, with what bounds the rounding.

    Attributes:
        factor: bfloat16 [latents, d_in + COLUMNS].
        weight: float32 [latents, d_in].
        offset: bias minus threshold, float32 [latents].
    """

    factor: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def of(cls, encoder: Encoder) -> "Screen":
        """Of an encoder in float32."""
        weight = encoder.weight.T.contiguous()
        latents, d_in = weight.shape
        offset = encoder.bias - encoder.threshold
        factor = weight.new_empty(latents, d_in + COLUMNS, dtype=torch.bfloat16)
        error = _sum_error(d_in)
        size = rows_of_part(d_in)
        for rows, out in zip(weight.split(size), factor.split(size), strict=True):
            rounded = out[:, :d_in].copy_(rows).float()
            norm = rounded.norm(dim=1)
            out[:, -2] = _rounded_up(norm)
            out[:, -1] = _rounded_up(rounded.sub_(rows).norm(dim=1) + error * norm)
        factor[:, d_in] = offset
        factor[:, d_in + 1] = offset - factor[:, d_in].float()
        factor[:, d_in + 2] = _rounded_up(offset.abs() * (2.0**-16 + error))
        return cls(factor, weight, offset)

    def room(self, tokens: int) -> Tensor:
        """Memory for the bounds of so many tokens."""
        return self.factor.new_empty(tokens, len(self.weight))

    def upper_bounds(self, centred: Tensor, room: Tensor) -> Tensor:
        """What margins do not exceed, but for the bounds' own rounding to bfloat16.

        Args:
            centred: float32 [tokens, d_in].
            room: bfloat16 [tokens, latents], overwritten.

        Returns:
            room.
        """
        tokens, d_in = centred.shape
        factor = self.factor.new_empty(tokens, d_in + COLUMNS)
        rounded = factor[:, :d_in].copy_(centred).float()
        factor[:, d_in : d_in + 3] = 1
        factor[:, -2] = _rounded_up(rounded.sub_(centred).norm(dim=1))
        factor[:, -1] = _rounded_up(centred.norm(dim=1))
        return torch.mm(factor, self.factor.T, out=room)

    def needed_candidates(self, centred: Tensor, k: int, more: int) -> int:
        """How many candidates prove most tokens' picks, by what these tokens need.

        Args:
            centred: float32 [tokens, d_in].
            k: how many come first.
            more: how many come after these.
        """
        wanted = k + more
        bounds = self.upper_bounds(centred, self.room(len(centred)))
        values, _ = self._largest(centred, largest(bounds, wanted)[1])
        least = values[:, -1:] - values[:, -1:].abs() * BFLOAT16
        # As float32: torch takes three times as long to add up what is true.
        needed = (bounds >= least.bfloat16()).float().sum(-1)
        return max(int(SPARE * needed.quantile(PROVEN).item()), wanted) + 3

    def pick(
        self, centred: Tensor, k: int, more: int, candidates: int, room: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest margins of each token and the next ones, where that is proven.

        Args:
            centred: float32 [tokens, d_in].
            k: how many come first.
            more: how many come after these.
            candidates: of how many latents margins are computed, more than k + more.
            room: bfloat16 [tokens, latents], overwritten.

        Returns:
            Margins and their latents, both [tokens, k + more], and whether these are a token's
            largest and the k at their head are no matter of choice, bool [tokens].
        """
        wanted = k + more
        parts = cached_parts(self.upper_bounds(centred, room))
        bounds, index = _joined(largest(part, candidates) for part in parts)
        values, place = self._largest(centred, index)
        # Of equal margins whole rows decide, so that it is the same however many are picked.
        told_apart = values[:, k - 1] > values[:, k]
        lowest = bounds.amin(-1).float()
        proven = told_apart & (values[:, wanted - 1] > lowest + lowest.abs() * BFLOAT16)
        return values[:, :wanted], index.gather(-1, place[:, :wanted]), proven

    def _largest(self, centred: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Margins of the latents at index, largest first, and where at index these stand."""
        margin = Picks(index, len(self.weight)).row_dots(centred, self.weight)
        return (margin + self.offset[index]).sort(-1, descending=True)


def _sum_error(d_in: int) -> float:
    """Share of the product of norms that sums in float32, of both products, are off at most."""
    return 4 * (d_in + COLUMNS) * 2.0**-24


def _rounded_up(values: Tensor) -> Tensor:
    return (values * (1 + BFLOAT16)).bfloat16()
