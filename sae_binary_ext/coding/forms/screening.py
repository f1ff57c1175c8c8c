"""The largest margins of each token, most of them told apart by a product in bfloat16.

Processors with instructions for bfloat16 multiply it several times as fast as float32. The product
of a token x and a latent's weights w, rounded to xr and wr, bounds theirs (Cauchy and Schwarz):

    x . w <= xr . wr + |x - xr| |wr| + |x| |w - wr|

All of it and the bias are one product of wider factors. The latents of large bounds are the
candidates, whose margins are computed in float32. A token's pick of them is proven where its
smallest margin is above every other latent's bound. The picks of the few other tokens are made from
all of their margins in float32: the picks are the k largest margins in float32 in any case.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.bounds import BoundsAbove, Finder, LargestBounds
from sae_binary_ext.coding.forms.margins import block_rows, margins_in_parts
from sae_binary_ext.coding.kernels.cache_blocks import rows_of_part
from sae_binary_ext.coding.kernels.largest import largest, largest_and_next
from sae_binary_ext.coding.kernels.processor import screens_in_bfloat16
from sae_binary_ext.coding.kernels.sparse import row_dots
from sae_binary_ext.coding.selection import pick_and_next

# Screen only if there are at least so many latents for each candidate. Time over that of all
# margins, at 2304 and 4608 latents and 4096 tokens: 0.83 to 0.91 with 6.5, 0.95 to 1.13 with 4.9.
FEWEST_LATENTS = 6
# Candidates for each latent that is wanted, at least and at most.
MORE_CANDIDATES, MOST_CANDIDATES = 1.25, 4
# Use top m if there are more than 160 latents for each wanted one (timings: benchmarks/).
WIDE = 160
# Tokens that tell which candidates are needed.
PROBED = 64
# Take the 90th percentile of the candidates that 64 probe tokens need, plus 10%. This proves the
# picks of 98% of tokens on SmolLM2's layer 9 and on normal random numbers, k = 16 to 128.
ENOUGH, SPARE = 0.9, 1.1
# Extra columns of both factors: three for the bias (two numbers, and a bound of the rest), two
# norms.
COLUMNS = 5
# Relative error of rounding to bfloat16: a number raised by this share does not round below itself.
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
    find = screen.finder(rows, k + more)
    if find is None:
        return pick_from_all(encoder, more)
    # Of equal size: small products are slow ones.
    blocks = rows.chunk(math.ceil(len(rows) / block_rows(encoder.latents)))
    room = screen.room(len(blocks[0]))
    picked = (screen.pick(block, k, more, find, room[: len(block)]) for block in blocks)
    values, index, proven = _joined(picked)
    others = (~proven).nonzero().squeeze(-1)
    if len(others):
        of_others = pick_from_all(replace(encoder, centred=rows[others]), more)
        values[others], index[others] = of_others
    return values, index


def may_screen(encoder: Encoder, more: int) -> bool:
    """Whether pick_screened takes this encoder and is expected to be faster."""
    return (
        encoder.rule.kind.picks_largest
        and MORE_CANDIDATES * (encoder.rule.k + more) * FEWEST_LATENTS <= encoder.latents
        and screens_in_bfloat16(encoder.centred, encoder.weight)
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

    def finder(self, centred: Tensor, wanted: int) -> Finder | None:
        """What finds the candidates of such tokens, by what a few of them need.

        Args:
            centred: float32 [tokens, d_in].
            wanted: how many of the largest margins must be among the candidates.

        Returns:
            None where these would be too many.
        """
        latents = len(self.weight)
        # Evenly, so that all places of a context are among them.
        places = torch.linspace(0, len(centred) - 1, PROBED, device=centred.device)
        probed = centred[places.long()]
        bounds = self.upper_bounds(probed, self.room(PROBED))
        least = self._least(probed, largest(bounds, wanted)[1])
        if latents < WIDE * wanted:
            most = MOST_CANDIDATES * wanted
            find = BoundsAbove.of_least_work(bounds.float(), least, most)
            count = find(bounds).starts[-1].item() / PROBED
        else:
            # As float32: torch takes three times as long to add up what is true.
            needed = (bounds >= least.bfloat16().unsqueeze(-1)).float().sum(-1)
            count = max(int(SPARE * needed.quantile(ENOUGH).item()), wanted) + 3
            find = LargestBounds(count)
        return find if count * FEWEST_LATENTS <= latents else None

    def _least(self, centred: Tensor, index: Tensor) -> Tensor:
        """The smallest margin of the latents at index, lowered to what proves it: [tokens]."""
        starts = torch.arange(0, index.numel() + 1, index.shape[-1], device=index.device)
        least = self._margins(centred, starts, index.flatten()).view(index.shape).amin(-1)
        return least - least.abs() * BFLOAT16

    def pick(
        self, centred: Tensor, k: int, more: int, find: Finder, room: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest margins of each token and the next ones, where that is proven.

        Args:
            centred: float32 [tokens, d_in].
            k: how many come first.
            more: how many come after these.
            find: finds the latents of which margins are computed.
            room: bfloat16 [tokens, latents], overwritten.

        Returns:
            Margins and their latents, both [tokens, k + more], and whether these are a token's
            largest and the k at their head are no matter of choice, bool [tokens].
        """
        wanted, next_ones = k + more, max(more, 1)
        found = find(self.upper_bounds(centred, room))
        entries = found.rows(fewest=k + next_ones)
        margins = self._margins(centred, found.starts, found.column)
        margins = F.pad(margins, (0, 1), value=-torch.inf).take(entries)
        values, place = largest_and_next(margins, k, next_ones)
        # Of equal margins whole rows decide, so that it is the same however many are picked.
        told_apart = values[:, :k].amin(-1) > values[:, k:].amax(-1)
        values, place = values[:, :wanted], place[:, :wanted]
        others = found.others + found.others.abs() * BFLOAT16
        index = F.pad(found.column, (0, 1)).take(entries.gather(-1, place))
        return values, index, told_apart & (values.amin(-1) > others)

    def _margins(self, centred: Tensor, starts: Tensor, column: Tensor) -> Tensor:
        """Margins of the latents in column, each token's from its start on."""
        offset = self.offset.index_select(0, column)
        return row_dots(centred, self.weight, starts, column).add_(offset)


def _sum_error(d_in: int) -> float:
    """Share of the product of norms that sums in float32, of both products, are off at most."""
    return 4 * (d_in + COLUMNS) * 2.0**-24


def _rounded_up(values: Tensor) -> Tensor:
    return (values * (1 + BFLOAT16)).bfloat16()
