"""The best decoder for given codes, in closed form by least squares."""

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.sparse import code_matrix


class DecoderFit:
    """Normal equations of a decoder, gathered a batch at a time.

    Attributes:
        counts: int32 [latents, latents], tokens on which each pair of latents fired; only the upper
            triangle, because it is symmetric.
        target_sums: float64 [latents, d_out], sum of the targets where each latent fired.
        target_sum: float64 [d_out], sum of all targets.
        tokens: how many were added.
    """

    def __init__(self, latents: int, d_out: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(latents, latents, dtype=torch.int32, device=device)
        self.target_sums = torch.zeros(latents, d_out, dtype=torch.float64, device=device)
        self.target_sum = torch.zeros(d_out, dtype=torch.float64, device=device)
        self.tokens = 0

    @torch.no_grad()
    def add(self, active: Tensor, target: Tensor) -> None:
        """Add codes, bool [tokens, latents], and targets [tokens, d_out].

        There must be fewer than 2^24 tokens, up to which float32 counts exactly.
        """
        matrix = code_matrix(active)
        matrix.add_pair_counts(self.counts)
        self.target_sums += matrix.transposed_times(target.double())
        self.target_sum += target.sum(0, dtype=torch.float64)
        self.tokens += len(target)

    @torch.no_grad()
    def solve(
        self, weight: Tensor, bias: Tensor, pull: float, fits_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """The decoder of least squared error, pulled a little towards the old one.

        Minimises the sum over tokens of |target - codes @ W - b|^2, plus pull * |W - weight|^2. A
        latent that never fired keeps its row.

        Args:
            weight: [latents, d_out], the old decoder.
            bias: [d_out], its bias.
            pull: in tokens; must be positive.
            fits_bias: true to fit the bias, false to keep it.

        Returns:
            W and b in the dtypes of weight and bias; solved in float64.
        """
        before = weight.double()
        gram = (self.counts + self.counts.triu(1).T).double()
        wanted = self.target_sums.clone()
        rates = gram.diagonal() / self.tokens
        mean = self.target_sum / self.tokens
        if fits_bias:
            # With the best bias for each W, codes and targets are centred.
            gram.addr_(rates, rates, alpha=-self.tokens)
            wanted.addr_(rates, mean, alpha=-self.tokens)
        else:
            wanted.addr_(gram.diagonal(), bias.double(), alpha=-1)
        # Solve for the change, so that rows of latents that never fired stay bitwise the same.
        wanted -= gram @ before
        gram.diagonal().add_(pull)
        torch.linalg.cholesky(gram, out=gram)
        after = before + torch.cholesky_solve(wanted, gram)
        if fits_bias:
            bias = (mean - rates @ after).to(bias.dtype)
        return after.to(weight.dtype), bias
