"""The largest margins of each token, by a product in bfloat16 that rules most latents out.

Processors with instructions for bfloat16 multiply it several times as fast as float32. Let xr and
wr be a token x and a latent's weights w, rounded. Their product bounds that of x and w (Cauchy and
Schwarz):

    x . w <= xr . wr + |x - xr| |wr| + |x| |w - wr|

One product of wider factors gives the right side plus the bias. The latents with large bounds are
the candidates, and their margins are computed in float32. The pick of a token is proven if its
smallest margin is above the bound of each other latent. The few tokens without proof are picked
from all of their margins. So the picks are always the k largest margins in float32.
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
from sae_binary_ext.coding.kernels.largest import largest, largest_and_next
from sae_binary_ext.coding.kernels.processor import rows_of_part, screens_in_bfloat16
from sae_binary_ext.coding.kernels.sparse import row_dots
from sae_binary_ext.coding.selection import pick_and_next

# Screen only if there are at least this many latents for each candidate. With 6.5 the time is 0.83
# to 0.91 of that of all margins, with 4.9 it is 0.95 to 1.13 (2304 and 4608 latents, 4096 tokens).
FEWEST_LATENTS = 6
# The fewest and the most candidates for each wanted latent.
MORE_CANDIDATES, MOST_CANDIDATES = 1.25, 4
# Use top m if there are more than 160 latents for each wanted one (timings: benchmarks/).
WIDE = 160
# Tokens from which the number of candidates is estimated.
PROBED = 64
# Take the 90th percentile of the candidates that 64 probe tokens need, plus 10%. This proves the
# picks of 98% of tokens on SmolLM2's layer 9 and on normal random numbers, k = 16 to 128.
ENOUGH, SPARE = 0.9, 1.1
# Extra columns of both factors: three for the bias (two numbers, and a bound of the rest) and two
# for norms.
COLUMNS = 5
# A number raised by this share does not round below itself in bfloat16.
BFLOAT16 = 2.0**-7


def pick(encoder: Encoder, more: int = 0) -> tuple[Tensor, Tensor]:
    """As selection.pick_and_next, of tokens: margins and latents, both [tokens, k + more]."""
    return (pick_screened if may_screen(encoder, more) else pick_from_all)(encoder, more)


@torch.no_grad()
def pick_from_all(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """As pick, from all margins."""
    parts = margins_in_parts(encoder)
    values, index = _joined(pick_and_next(margin, encoder.rule, more) for margin in parts)
    return values, index


@torch.no_grad()
def pick_screened(encoder: Encoder, more: int) -> tuple[Tensor, Tensor]:
    """As pick, from the margins of candidates if a token's pick is proven, else from all."""
    screen = Screen.of(encoder)
    rows, k = encoder.centred.reshape(-1, encoder.centred.shape[-1]), encoder.rule.k
    find = screen.finder(rows, k + more)
    if find is None:
        return pick_from_all(encoder, more)
    # Blocks of equal size, since small products are slow.
    blocks = rows.chunk(math.ceil(len(rows) / block_rows(encoder.latents)))
    room = screen.room(len(blocks[0]))
    picked = (screen.pick(block, k, more, find, room[: len(block)]) for block in blocks)
    values, index, proven = _joined(picked)
    others = (~proven).nonzero().squeeze(-1)
    if len(others):
        values[others], index[others] = pick_from_all(replace(encoder, centred=rows[others]), more)
    return values, index


def may_screen(encoder: Encoder, more: int) -> bool:
    """Whether pick_screened takes this encoder and is faster."""
    return (
        encoder.rule.kind.picks_largest
        and MORE_CANDIDATES * (encoder.rule.k + more) * FEWEST_LATENTS <= encoder.latents
        and screens_in_bfloat16(encoder.centred, encoder.weight)
    )


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    return (torch.cat(each) for each in zip(*parts, strict=True))


@dataclass(frozen=True)
class Screen:
    """An encoder's weights, rounded, with columns that bound the rounding.

    factor is bfloat16 [latents, d_in + COLUMNS], weight float32 [latents, d_in], and offset, bias
    minus threshold, float32 [latents].
    """

    factor: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def of(cls, encoder: Encoder) -> "Screen":
        """The screen of an encoder in float32."""
        weight = encoder.weight.T.contiguous()
        latents, d_in = weight.shape
        offset = encoder.bias - encoder.threshold
        factor = weight.new_empty(latents, d_in + COLUMNS, dtype=torch.bfloat16)
        # The largest error of both products' float32 sums, as a share of the product of norms.
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
        """Memory for the bounds of some tokens."""
        return self.factor.new_empty(tokens, len(self.weight))

    def upper_bounds(self, centred: Tensor, room: Tensor) -> Tensor:
        """Upper bounds of the margins, bfloat16 [tokens, latents], rounded; room is overwritten."""
        tokens, d_in = centred.shape
        factor = self.factor.new_empty(tokens, d_in + COLUMNS)
        rounded = factor[:, :d_in].copy_(centred).float()
        factor[:, d_in : d_in + 3] = 1
        factor[:, -2] = _rounded_up(rounded.sub_(centred).norm(dim=1))
        factor[:, -1] = _rounded_up(centred.norm(dim=1))
        return torch.mm(factor, self.factor.T, out=room)

    def finder(self, centred: Tensor, wanted: int) -> Finder | None:
        """A finder whose candidates hold the wanted largest margins of probe tokens.

        None if there would be too many candidates.
        """
        latents = len(self.weight)
        # Evenly spread, so that all places of a context are among them.
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
            # torch takes three times as long to add up bools.
            needed = (bounds >= least.bfloat16().unsqueeze(-1)).float().sum(-1)
            count = max(int(SPARE * needed.quantile(ENOUGH).item()), wanted) + 3
            find = LargestBounds(count)
        return find if count * FEWEST_LATENTS <= latents else None

    def pick(
        self, centred: Tensor, k: int, more: int, find: Finder, room: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest margins of each token's candidates and the next ones; room is overwritten.

        The margins and their latents are both [tokens, k + more]. Bool [tokens] says whether they
        are proven to be the token's largest, and no other latent has the margin of the k-th.
        """
        wanted, next_ones = k + more, max(more, 1)
        found = find(self.upper_bounds(centred, room))
        entries = found.rows(fewest=k + next_ones)
        margins = self._margins(centred, found.starts, found.column)
        margins = F.pad(margins, (0, 1), value=-torch.inf).take(entries)
        values, place = largest_and_next(margins, k, next_ones)
        # Among equal margins a search of the whole row decides, so that each path picks the same.
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
