"""The decoder of least squared error for given codes. Gradient steps only approach it."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from sae_binary_ext.coding.kernels.sparse import code_matrix

logger = logging.getLogger(__name__)

# The pull keeps latents with few tokens from fitting noise. Of the values 1, 30, 100 and 300, the
# value 30 had the least error on held-out tokens (the demo's coder "binary", 4608 latents, 270,000
# tokens).
PULL = 30.0
# Number of tokens whose codes are made at once in a training run.
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Refit:
    """What a new decoder gained: FVU with the old and the new one, on the tokens fitted to."""

    tokens: int
    fvu_before: float
    fvu_after: float

    def log(self, coder: str) -> None:
        """Log the two FVUs under the coder's name."""
        text = "%s: decoder refitted on %d tokens, FVU %.4f -> %.4f on these tokens."
        logger.info(text, coder, self.tokens, self.fvu_before, self.fvu_after)


class DecoderFit:
    """Finds the best decoder for given codes, by normal equations summed batch by batch.

    With a skip connection, which adds a linear map of the input to the output, decoder and map are
    solved for together. The columns of the problem are then latents first and the input's
    dimensions after them.

    Attributes:
        counts: int32 [latents, latents], tokens on which each pair of latents fired; only the upper
            triangle is filled, because the matrix is symmetric.
        input_products: float64 [d_skip, latents + d_skip], sums over tokens of the input times the
            codes and the input; d_skip is 0 if there is no skip connection.
        input_sum: float64 [d_skip], sum of the inputs.
        target_sums: float64 [latents + d_skip, d_out], sums of codes and inputs times targets.
        target_sum: float64 [d_out], sum of the targets.
        squares: float64 scalar, sum of the squares of targets.
        tokens: number of tokens added.
    """

    def __init__(
        self, latents: int, d_out: int, device: str | torch.device = "cpu", d_skip: int = 0
    ) -> None:
        self.counts = torch.zeros(latents, latents, dtype=torch.int32, device=device)
        columns = latents + d_skip
        self.target_sums = torch.zeros(columns, d_out, dtype=torch.float64, device=device)
        self.input_products = self.target_sums.new_zeros(d_skip, columns)
        self.input_sum = self.target_sums.new_zeros(d_skip)
        self.target_sum = self.target_sums.new_zeros(d_out)
        self.squares = self.target_sums.new_zeros(())
        self.tokens = 0

    @torch.no_grad()
    def add(self, active: Tensor, target: Tensor, x: Tensor | None = None) -> None:
        """Add codes, bool [tokens, latents], and targets, [tokens, d_out].

        x [tokens, d_skip] is what a skip connection reads; None if there is none. A call takes
        fewer than 2^24 tokens, because float32 counts exactly up to there.
        """
        matrix, target = code_matrix(active), target.double()
        latents = len(self.counts)
        matrix.add_pair_counts(self.counts)
        self.target_sums[:latents] += matrix.transposed_times(target)
        self.target_sum += target.sum(0)
        self.squares += target.square().sum()
        self.tokens += len(target)
        if x is not None:
            x = x.double()
            self.target_sums[latents:] += x.T @ target
            self.input_products[:, :latents] += matrix.transposed_times(x).T
            self.input_products[:, latents:] += x.T @ x
            self.input_sum += x.sum(0)

    def sum_over_ranks(self) -> None:
        """Add up the sums of all ranks of a distributed run, if this is one."""
        if not dist.is_initialized():
            return
        tokens = torch.tensor(self.tokens, device=self.counts.device)
        for total in (*vars(self).values(), tokens):
            if isinstance(total, Tensor) and total.numel():
                dist.all_reduce(total)
        self.tokens = int(tokens)

    @torch.no_grad()
    def replace(
        self,
        weight: Tensor,
        bias: Tensor,
        skip: Tensor | None = None,
        *,
        fits_bias: bool,
        pull: float = PULL,
    ) -> Refit:
        """Solve for a decoder and write it over the old one.

        weight is [latents, d_out] and skip, of a skip connection, [d_out, d_skip]. The other
        arguments are those of solve.
        """
        before = weight if skip is None else torch.cat([weight, skip.mT])
        after, new_bias = self.solve(before, bias, pull, fits_bias)
        fvu_before = self._fvu(before, bias)
        weight.copy_(after[: len(weight)])
        bias.copy_(new_bias)
        if skip is not None:
            skip.copy_(after[len(weight) :].mT)
        return Refit(self.tokens, fvu_before, self._fvu(after, bias))

    @torch.no_grad()
    def solve(
        self, weight: Tensor, bias: Tensor, pull: float, fits_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """The decoder of least squared error, pulled a little towards the old decoder.

        Minimises the sum over tokens of |target - columns @ W - b|^2, plus pull * |W - weight|^2,
        from the old decoder: weight [latents + d_skip, d_out] and bias [d_out]. The pull is in
        tokens and must be positive; on rows of a skip connection it is multiplied by the input's
        mean variance. A latent that never fired keeps its row. The bias does not change if
        fits_bias is false. Solves in float64; returns W and b in the dtypes of weight and bias.

        Raises:
            ValueError: no tokens were added.
        """
        if not self.tokens:
            raise ValueError("batches: no activations to refit the decoder on.")
        before = weight.double()
        gram, sums = self._gram(), self._sums()
        wanted = self.target_sums.clone()
        mean = self.target_sum / self.tokens
        if fits_bias:
            # Centre columns and targets, which is the same as taking the best bias for each W.
            gram.addr_(sums, sums, alpha=-1 / self.tokens)
            wanted.addr_(sums, mean, alpha=-1)
        else:
            wanted.addr_(sums, bias.double(), alpha=-1)
        # Solve for the change of rows, so that rows of latents that never fired keep every bit.
        wanted -= gram @ before
        diagonal, latents = gram.diagonal(), len(self.counts)
        if len(self.input_sum):
            diagonal[latents:] += pull * diagonal[latents:].mean() / self.tokens
        diagonal[:latents] += pull
        torch.linalg.cholesky(gram, out=gram)
        after = before + torch.cholesky_solve(wanted, gram)
        if fits_bias:
            bias = (mean - sums @ after / self.tokens).to(bias.dtype)
        return after.to(weight.dtype), bias

    def _gram(self) -> Tensor:
        """Products of all columns, float64 [latents + d_skip, latents + d_skip]."""
        codes, latents = (self.counts + self.counts.triu(1).T).double(), len(self.counts)
        if not len(self.input_sum):
            return codes
        upper = torch.cat([codes, self.input_products[:, :latents].T], dim=1)
        return torch.cat([upper, self.input_products])

    def _sums(self) -> Tensor:
        """Sums of all columns over tokens, float64 [latents + d_skip]."""
        return torch.cat([self.counts.diagonal().double(), self.input_sum])

    def _fvu(self, weight: Tensor, bias: Tensor) -> float:
        """FVU of a decoder: the sum of |target - columns @ weight - bias|^2, multiplied out."""
        wide, offset = weight.double(), bias.double()
        with_target = (wide * self.target_sums).sum() + offset @ self.target_sum
        with_itself = (wide * (self._gram() @ wide)).sum() + self.tokens * offset.square().sum()
        with_itself += 2 * offset @ (self._sums() @ wide)
        error = self.squares - 2 * with_target + with_itself
        return (error / (self.squares - self.target_sum.square().sum() / self.tokens)).item()
