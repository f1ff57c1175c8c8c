"""Figures of a coder over a stream of activations, in constant memory."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor, nn

from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.measure.documents import Estimate, TextBatch, WeightedSums, estimate_of
from sae_binary_ext.measure.in_model import apply_coder, reads_sequences
from sae_binary_ext.measure.samples import LatentSamples

# Bits stored for each active latent of a coder with values.
BITS_A_VALUE = 8
# Codes (tokens times latents) computed at once: 64 MB in float32.
CODES_AT_ONCE = 2**24
# Number of documents, from the first on, for which the FVU is also kept document by document.
FIRST_DOCUMENTS = 500
TOKENS, ERROR, COSINE, ACTIVE, ACTIVE_SQUARED = range(5)
ROWS_AT_ONCE = 1024


@torch.no_grad()
def nearest_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of weight [rows, width], the nearest other row: its cosine and its index.

    At least two rows. Cosines are float32, indices int64; a row of zeros has cosine 0 with all.
    """
    unit = nn.functional.normalize(weight.float(), dim=1)
    found: list[tuple[Tensor, Tensor]] = []
    for part in torch.arange(len(unit), device=unit.device).split(ROWS_AT_ONCE):
        products = unit[part] @ unit.T
        best = products.scatter_(1, part[:, None], -torch.inf).max(dim=1)
        found.append((best.values.cpu(), best.indices.cpu()))
    cosines, nearest = zip(*found, strict=True)
    return torch.cat(cosines), torch.cat(nearest)


@dataclass(frozen=True)
class TokenBatch:
    """Activations of tokens at one site, and the rows of text they come from.

    inputs [tokens, d_in] and targets [tokens, d_out] are at the true positions of `where`, bool
    [rows, context], row by row. weights, float64 [rows, 1 + REPLICATES], are from document_weights.
    rows [rows, context, d_in] are inputs at all positions, for coders that read sequences.
    """

    inputs: Tensor
    targets: Tensor
    text: TextBatch
    where: Tensor
    weights: Tensor
    rows: Tensor | None = None

    @property
    def row_of_token(self) -> Tensor:
        """int64 [tokens], the row of text that each token is in."""
        return self.where.nonzero()[:, 0]


def sums_by_row(values: Tensor, row_of_token: Tensor, rows: int) -> Tensor:
    """Sum values [tokens, width] over the tokens of each row: [rows, width], of the same dtype."""
    sums = values.new_zeros(rows, values.shape[1])
    return sums.index_add_(0, row_of_token.to(values.device), values)


class DocumentSums(nn.Module):
    """Sums over the tokens of each document, for the first FIRST_DOCUMENTS documents."""

    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(FIRST_DOCUMENTS, width, dtype=torch.float64))

    def add(self, rows: Tensor, documents: list[int]) -> None:
        """Add rows [rows, width] to the sums of their documents."""
        numbers = torch.tensor(documents)
        first = numbers < FIRST_DOCUMENTS
        self.sums.index_add_(0, numbers[first], rows.to("cpu", torch.float64)[first])


class RunningVariance(nn.Module):
    """Total variance of the targets at a site, by which the error of each coder is divided."""

    origin: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sums = WeightedSums(2 + width)
        self.documents = DocumentSums(2 + width)
        # `origin` is subtracted from all targets, because squares of values far from 0 lose digits.
        self.register_buffer("origin", torch.zeros(width, dtype=torch.float64))

    def add(self, batch: TokenBatch) -> None:
        """Add the targets of a batch."""
        targets = batch.targets.to("cpu", torch.float64)
        if not self.sums.sums.any():
            self.origin.copy_(targets.mean(0))
        shifted = targets - self.origin
        squared = shifted.square().sum(1, keepdim=True)
        values = torch.cat([torch.ones_like(squared), squared, shifted], dim=1)
        rows = sums_by_row(values, batch.row_of_token, len(batch.weights))
        self.sums.add(rows, batch.weights)
        self.documents.add(rows, batch.text.documents)

    def totals(self) -> Tensor:
        """float64 [1 + REPLICATES], squared distances from the mean, summed over tokens."""
        sums = self.sums.sums
        return sums[:, 1] - sums[:, 2:].square().sum(1) / sums[:, 0]

    def document_totals(self) -> Tensor:
        """float64 [FIRST_DOCUMENTS], totals of each document; 0 for documents without text."""
        sums, shift = self.documents.sums, self.mean() - self.origin
        return sums[:, 1] - 2 * sums[:, 2:] @ shift + sums[:, 0] * shift.square().sum()

    def mean(self) -> Tensor:
        """float64 [d_out], the mean target."""
        return self.origin + self.sums.sums[0, 2:] / self.sums.sums[0, 0]


@dataclass(frozen=True)
class CoderFigures:
    """How well a coder reconstructs, and how its latents fire.

    Attributes:
        fvu: squared error over total variance, both summed over tokens and dimensions.
        cosine: cosine between target and output, mean over tokens.
        l0, l0_deviation: mean and standard deviation of the number of active latents a token.
        entropy_bits: entropy of the firing rates, summed over latents, in bits a token.
        bits: description length in bits a token: the entropy plus 8 bits for each value.
        stores_values: whether active latents have values other than 1.
        rates: float64 [latents], firing rates.
        neighbour_cosines: float32 [latents], cosine of each decoder row with the most similar one.
        neighbour_correlations: float64 [latents], correlation between the firing of a latent and of
            its neighbour; NaN if one of them never or always fires.
        tokens_per_second: tokens a second of encode, without decode.
        document_fvu: float64, FVU of each of the first documents that have text.
    """

    tokens: int
    latents: int
    fvu: Estimate
    cosine: Estimate
    l0: Estimate
    l0_deviation: Estimate
    entropy_bits: Estimate
    bits: Estimate
    stores_values: bool
    rates: Tensor
    neighbour_cosines: Tensor
    neighbour_correlations: Tensor
    tokens_per_second: float
    document_fvu: Tensor


class RunningFigures(nn.Module):
    """Running sums for CoderFigures, and samples of latents. Its state_dict can be saved."""

    with_nearest: Tensor
    seconds: Tensor
    stores_values: Tensor

    def __init__(self, coder: SAE[Any], samples: int = 0) -> None:
        super().__init__()
        latents = coder.cfg.d_sae
        # The coder is in a list, so that its weights are not part of the state_dict.
        self._coder = [coder]
        self._cosines, self._nearest = nearest_rows(coder.W_dec)
        self.samples = LatentSamples(latents, samples)
        self.sums = WeightedSums(5)
        self.documents = DocumentSums(1)
        self.counts = WeightedSums(latents)
        self.register_buffer("with_nearest", torch.zeros(latents, dtype=torch.float64))
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.register_buffer("stores_values", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def add(self, batch: TokenBatch) -> Tensor:
        """Add a batch; returns bool [tokens, latents], true where a latent is active."""
        (coder,), all_rows = self._coder, batch.row_of_token
        fired: list[Tensor] = []
        values: list[Tensor] = []
        inputs, where = batch.inputs, None
        if reads_sequences(coder) and batch.rows is not None:
            inputs, where = batch.rows, batch.where
        for tokens, codes, output, seconds in apply_coder(coder, inputs, CODES_AT_ONCE, where):
            targets, row = batch.targets[tokens].to(codes.device), all_rows[tokens]
            self.seconds += seconds
            active = codes != 0
            # Few latents fire, so count firings one by one instead of summing whole codes.
            token, latent = active.nonzero().unbind(1)
            self.stores_values |= (codes[token, latent] != 1).any().cpu()
            number = torch.bincount(token, minlength=len(codes))
            figures = _figures_of(number.double(), output.float(), targets.float())
            by_row = sums_by_row(figures, row, len(batch.weights))
            self.sums.add(by_row, batch.weights)
            self.documents.add(by_row[:, [ERROR]], batch.text.documents)
            shape = len(batch.weights), codes.shape[1]
            place = row.to(codes.device)[token] * shape[1] + latent
            counts = torch.bincount(place, minlength=shape[0] * shape[1]).view(shape)
            self.counts.add(counts, batch.weights)
            both = latent[active[token, self._nearest.to(codes.device)[latent]]]
            self.with_nearest += torch.bincount(both, minlength=shape[1]).cpu()
            fired.append(active.cpu())
            values.append(codes[:, self.samples.latents.to(codes.device)].float().cpu())
        self.samples.add(batch.text, batch.where, torch.cat(values))
        return torch.cat(fired)

    def figures(self, variance: RunningVariance) -> CoderFigures:
        """The figures so far; `variance` must have had the same batches."""
        sums, tokens = self.sums.sums, self.sums.sums[:, TOKENS]
        rates = self.counts.sums / tokens[:, None]
        entropy = bernoulli_entropy(rates.clamp(0, 1)).sum(1)
        # A replicate with no documents gives NaN, not 0.
        entropy = torch.where(tokens > 0, entropy, torch.nan)
        l0 = sums[:, ACTIVE] / tokens
        l0_variance = sums[:, ACTIVE_SQUARED] / tokens - l0**2
        stores_values = bool(self.stores_values)
        there = self.documents.sums[:, 0] > 0
        rate, others = rates[0], rates[0, self._nearest]
        # The phi coefficient (correlation of firing) of each latent and its nearest latent.
        covariance = self.with_nearest / tokens[0] - rate * others
        correlations = covariance / (rate * (1 - rate) * others * (1 - others)).sqrt()
        return CoderFigures(
            tokens=int(tokens[0]),
            latents=rates.shape[1],
            fvu=estimate_of(sums[:, ERROR] / variance.totals()),
            cosine=estimate_of(sums[:, COSINE] / tokens),
            l0=estimate_of(l0),
            l0_deviation=estimate_of(l0_variance.clamp_min(0).sqrt()),
            entropy_bits=estimate_of(entropy),
            bits=estimate_of(entropy + BITS_A_VALUE * l0 * stores_values),
            stores_values=stores_values,
            rates=rate,
            neighbour_cosines=self._cosines,
            neighbour_correlations=correlations,
            tokens_per_second=(tokens[0] / self.seconds).item(),
            document_fvu=self.documents.sums[there, 0] / variance.document_totals()[there],
        )


def _figures_of(number: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    """float64 [tokens, 5], in the order of TOKENS, ERROR, …; `number` counts latents."""
    error = (output - targets).double().square().sum(1)
    cosine = nn.functional.cosine_similarity(output, targets, dim=1).double()
    return torch.stack([torch.ones_like(error), error, cosine, number, number**2], dim=1)
