"""Finds the largest margins of each token, with a bfloat16 product that rules out most latents.

Processors with instructions for bfloat16 multiply bfloat16 several times as fast as float32. Let xr
and wr be a token x and a latent's weights w, rounded to bfloat16. The Cauchy-Schwarz inequality
gives an upper bound of the exact product:

    x . w <= xr . wr + |x - xr| |wr| + |x| |w - wr|

One product of matrices with a few extra columns gives the right side plus the bias. The latents
with large bounds are the candidates, and their margins are computed in float32. A token's pick is
proven if its smallest margin is above the bound of every other latent. For the few tokens without
proof, all margins are computed. So picks are always the k largest margins in float32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.bounds import BoundsAbove, Finder, LargestBounds
from sae_binary_ext.coding.forms.margins import block_rows, margins_in_parts
from sae_binary_ext.coding.kernels.largest import largest, largest_and_next
from sae_binary_ext.coding.kernels.processor import rows_of_part, screens_in_bfloat16
from sae_binary_ext.coding.kernels.sparse import row_dots
from sae_binary_ext.coding.kernels.threads import blocks_of_threads, map_blocks
from sae_binary_ext.coding.selection import pick_and_next

# Screen only if there are at least this many latents for each candidate. Screening takes 0.83 to
# 0.91 of the time of all margins at 6.5 latents, and 0.95 to 1.13 at 4.9 (2304 and 4608 latents,
# 4096 tokens).
FEWEST_LATENTS = 6
# Minimum and maximum number of candidates for each wanted latent.
MORE_CANDIDATES, MOST_CANDIDATES = 1.25, 4
# Use LargestBounds if there are more than 160 latents for each wanted one (see benchmarks/).
WIDE = 160
# Number of probe tokens, from which the number of candidates is estimated.
PROBED = 64
# Take the 90th percentile of the candidates that 64 probe tokens need, plus 10%. This proves the
# picks of 98% of tokens on SmolLM2's layer 9 and on normal random numbers, k = 16 to 128.
ENOUGH, SPARE = 0.9, 1.1
# Extra columns of both factors: three for the bias (two bfloat16 numbers, and a bound of the rest)
# and two for norms.
COLUMNS = 5
# A number increased by this share does not round below its old value in bfloat16.
BFLOAT16 = 2.0**-7


def pick(encoder: Encoder, more: int = 0) -> tuple[Tensor, Tensor]:
    """As selection.pick_and_next, but from tokens; margins and latents are [tokens, k + more]."""
    return (pick_screened if may_screen(encoder, more) else pick_from_all)(encoder, more)


@torch.no_grad()
def pick_from_all(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """As pick, but always computes all margins."""
    parts = margins_in_parts(encoder)
    values, index = _joined(pick_and_next(margin, encoder.rule, more) for margin in parts)
    return values, index


@torch.no_grad()
def pick_screened(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """As pick, from the candidates' margins; tokens without a proven pick use all margins."""
    screen = Screen.of(encoder)
    rows, k = encoder.centred.reshape(-1, encoder.centred.shape[-1]), encoder.rule.k
    find = screen.finder(rows, k + more)
    if find is None:
        return pick_from_all(encoder, more)
    blocks = blocks_of_threads(rows, block_rows(encoder.latents))
    rooms = SimpleQueue[Tensor]()
    for _ in range(min(torch.get_num_threads(), len(blocks))):
        rooms.put(screen.room(len(blocks[0])))

    def pick_block(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Threads use their memory again, because new memory takes time.
        room = rooms.get()
        try:
            return screen.pick(block, k, more, find, room[: len(block)])
        finally:
            rooms.put(room)

    values, index, proven = _joined(map_blocks(pick_block, blocks))
    others = (~proven).nonzero().squeeze(-1)
    if len(others):
        values[others], index[others] = pick_from_all(replace(encoder, centred=rows[others]), more)
    return values, index


def may_screen(encoder: Encoder, more: int) -> bool:
    """Whether pick_screened works for this encoder and is faster than pick_from_all."""
    return (
        encoder.rule.kind.picks_largest
        and MORE_CANDIDATES * (encoder.rule.k + more) * FEWEST_LATENTS <= encoder.latents
        and screens_in_bfloat16(encoder.centred, encoder.weight)
    )


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    return (torch.cat(each) for each in zip(*parts, strict=True))


@dataclass(frozen=True)
class Screen:
    """An encoder's weights rounded to bfloat16, with columns that bound the rounding error.

    factor is bfloat16 [latents, d_in + COLUMNS], weight float32 [latents, d_in], and offset, bias
    minus threshold, float32 [latents].
    """

    factor: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def of(cls, encoder: Encoder) -> "Screen":
        """Make the screen of an encoder whose weights are float32."""
        weight = encoder.weight.T.contiguous()
        latents, d_in = weight.shape
        offset = encoder.bias - encoder.threshold
        factor = weight.new_empty(latents, d_in + COLUMNS, dtype=torch.bfloat16)
        # Bound of the error of both products' float32 sums, as a share of the norms' product.
        error = 4 * (d_in + COLUMNS) * 2.0**-24
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
        """Uninitialised memory for the bounds of this many tokens."""
        return self.factor.new_empty(tokens, len(self.weight))

    def upper_bounds(self, centred: Tensor, room: Tensor) -> Tensor:
        """Upper bounds of the margins, bfloat16 [tokens, latents], written into room."""
        tokens, d_in = centred.shape
        factor = self.factor.new_empty(tokens, d_in + COLUMNS)
        rounded = factor[:, :d_in].copy_(centred).float()
        factor[:, d_in : d_in + 3] = 1
        factor[:, -2] = _rounded_up(rounded.sub_(centred).norm(dim=1))
        factor[:, -1] = _rounded_up(centred.norm(dim=1))
        return torch.mm(factor, self.factor.T, out=room)

    def finder(self, centred: Tensor, wanted: int) -> Finder | None:
        """A finder whose candidates hold the largest margins of most probe tokens.

        The result is None if there would be too many candidates. wanted is the number of margins.
        """
        latents = len(self.weight)
        # Spread the probe tokens evenly, so that they cover all positions of a context.
        places = torch.linspace(0, len(centred) - 1, PROBED, device=centred.device)
        probed = centred[places.long()]
        bounds = self.upper_bounds(probed, self.room(PROBED))
        index = largest(bounds, wanted)[1].flatten()
        starts = torch.arange(0, len(index) + 1, wanted, device=index.device)
        # A lower bound of each token's smallest wanted margin; it allows for bfloat16's rounding.
        least = self._margins(probed, starts, index).view(PROBED, wanted).amin(-1)
        least = least - least.abs() * BFLOAT16
        if latents < WIDE * wanted:
            most = MOST_CANDIDATES * wanted
            find = BoundsAbove.of_least_work(bounds.float(), least, most)
            count = find(bounds).starts[-1].item() / PROBED
        else:
            # Convert to float, because torch takes three times as long to sum bools.
            needed = (bounds >= least.bfloat16().unsqueeze(-1)).float().sum(-1)
            count = max(int(SPARE * needed.quantile(ENOUGH).item()), wanted) + 3
            find = LargestBounds(count)
        return find if count * FEWEST_LATENTS <= latents else None

    def pick(
        self, centred: Tensor, k: int, more: int, find: Finder, room: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k + more largest margins of each token's candidates; room is overwritten.

        The margins and their latents are both [tokens, k + more]. The third result, bool [tokens],
        says whether the picks are proven to be the token's largest, with no tie at the k-th margin.
        """
        wanted, next_ones = k + more, max(more, 1)
        found = find(self.upper_bounds(centred, room))
        entries = found.rows(fewest=k + next_ones)
        margins = self._margins(centred, found.starts, found.column)
        margins = F.pad(margins, (0, 1), value=-torch.inf).take(entries)
        values, place = largest_and_next(margins, k, next_ones)
        # Break ties at the k-th margin by a search of the whole row, so that all paths agree.
        told_apart = values[:, :k].amin(-1) > values[:, k:].amax(-1)
        values, place = values[:, :wanted], place[:, :wanted]
        others = found.others + found.others.abs() * BFLOAT16
        index = F.pad(found.column, (0, 1)).take(entries.gather(-1, place))
        return values, index, told_apart & (values.amin(-1) > others)

    def _margins(self, centred: Tensor, starts: Tensor, column: Tensor) -> Tensor:
        """Margins [entries] of the latents in column; see Candidates for starts."""
        offset = self.offset.index_select(0, column)
        return row_dots(centred, self.weight, starts, column).add_(offset)


def _rounded_up(values: Tensor) -> Tensor:
    return (values * (1 + BFLOAT16)).bfloat16()
