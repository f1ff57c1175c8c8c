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

    Attributes:
        counts: int32 [latents, latents], tokens on which each pair of latents fired; only the upper
            triangle is filled, because the matrix is symmetric.
        target_sums: float64 [latents, d_out], sum of the targets over tokens on which a latent
            fired.
        target_sum, output_sum: float64 [d_out], sums of all targets and of all outputs.
        squares: float64 [2], sums of the squares of targets and of outputs.
        tokens: number of tokens added.
    """

    def __init__(self, latents: int, d_out: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(latents, latents, dtype=torch.int32, device=device)
        self.target_sums = torch.zeros(latents, d_out, dtype=torch.float64, device=device)
        self.target_sum, self.output_sum = self.target_sums.new_zeros(2, d_out)
        self.squares = self.target_sums.new_zeros(2)
        self.tokens = 0

    @torch.no_grad()
    def add(self, active: Tensor, target: Tensor, output: Tensor | None = None) -> None:
        """Add codes, bool [tokens, latents], and targets of the decoder, [tokens, d_out].

        output [tokens, d_out] is the whole that FVU is a share of, if the decoder's target is only
        a part of it. A call takes fewer than 2^24 tokens, because float32 counts exactly up to
        there.
        """
        matrix, target = code_matrix(active), target.double()
        output = target if output is None else output.double()
        matrix.add_pair_counts(self.counts)
        self.target_sums += matrix.transposed_times(target)
        self.target_sum += target.sum(0)
        self.output_sum += output.sum(0)
        self.squares += torch.stack([target.square().sum(), output.square().sum()])
        self.tokens += len(target)

    def sum_over_ranks(self) -> None:
        """Add up the sums of all ranks of a distributed run, if this is one."""
        if not dist.is_initialized():
            return
        tokens = torch.tensor(self.tokens, device=self.counts.device)
        for total in (*vars(self).values(), tokens):
            if isinstance(total, Tensor):
                dist.all_reduce(total)
        self.tokens = int(tokens)

    @torch.no_grad()
    def replace(
        self, weight: Tensor, bias: Tensor, *, fits_bias: bool, pull: float = PULL
    ) -> Refit:
        """Solve for a decoder and write it over the old one. The arguments are those of solve."""
        new_weight, new_bias = self.solve(weight, bias, pull, fits_bias)
        before = self._fvu(weight, bias)
        weight.copy_(new_weight)
        bias.copy_(new_bias)
        return Refit(self.tokens, before, self._fvu(weight, bias))

    @torch.no_grad()
    def solve(
        self, weight: Tensor, bias: Tensor, pull: float, fits_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """The decoder of least squared error, pulled a little towards the old decoder.

        Minimises the sum over tokens of |target - codes @ W - b|^2, plus pull * |W - weight|^2,
        from the old decoder: weight [latents, d_out] and bias [d_out]. The pull is in tokens and
        must be positive. A latent that never fired keeps its row. The bias does not change if
        fits_bias is false. Solves in float64; returns W and b in the dtypes of weight and bias.

        Raises:
            ValueError: no tokens were added.
        """
        if not self.tokens:
            raise ValueError("batches: no activations to refit the decoder on.")
        before = weight.double()
        gram = self._gram()
        wanted = self.target_sums.clone()
        rates = gram.diagonal() / self.tokens
        mean = self.target_sum / self.tokens
        if fits_bias:
            # Centre codes and targets, which is the same as taking the best bias for each W.
            gram.addr_(rates, rates, alpha=-self.tokens)
            wanted.addr_(rates, mean, alpha=-self.tokens)
        else:
            wanted.addr_(gram.diagonal(), bias.double(), alpha=-1)
        # Solve for the change of rows, so that rows of latents that never fired keep every bit.
        wanted -= gram @ before
        gram.diagonal().add_(pull)
        torch.linalg.cholesky(gram, out=gram)
        after = before + torch.cholesky_solve(wanted, gram)
        if fits_bias:
            bias = (mean - rates @ after).to(bias.dtype)
        return after.to(weight.dtype), bias

    def _gram(self) -> Tensor:
        return (self.counts + self.counts.triu(1).T).double()

    def _fvu(self, weight: Tensor, bias: Tensor) -> float:
        """FVU of a decoder: the sum of |target - codes @ weight - bias|^2, multiplied out."""
        wide, offset, gram = weight.double(), bias.double(), self._gram()
        with_target = (wide * self.target_sums).sum() + offset @ self.target_sum
        with_itself = (wide * (gram @ wide)).sum() + self.tokens * offset.square().sum()
        with_itself += 2 * offset @ (gram.diagonal() @ wide)
        error = self.squares[0] - 2 * with_target + with_itself
        return (error / (self.squares[1] - self.output_sum.square().sum() / self.tokens)).item()
