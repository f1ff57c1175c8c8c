"""Changes a trained binary coder: refits its decoder by least squares, or keeps some latents.

If codes are fixed, the best decoder has a closed form. Training by gradient steps only approaches
it.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.checkpoints import saelens, sources
from sae_binary_ext.checkpoints.load import placed, write_coder
from sae_binary_ext.checkpoints.sources import format_of
from sae_binary_ext.coding.kernels.sparse import code_matrix
from sae_binary_ext.measure.in_model import heads_side_by_side
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.text import Text, read_activations
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.transcoder import TranscoderFields

# The pull keeps latents with few tokens from fitting noise. Of the values 1, 30, 100 and 300, the
# value 30 had the least error on held-out tokens (the demo's coder "binary", 4608 latents, 270,000
# tokens).
PULL = 30.0
# Number of tokens to measure on, as a share of the tokens that the decoder is fitted to.
MEASURED_SHARE = 0.1
DIMENSION_OF_LATENTS = {"W_enc": 1, "b_enc": 0, "log_threshold": 0, "W_dec": 0}
AnyCoder = TypeVar("AnyCoder", bound=BinaryCoder)


class DecoderFit:
    """Finds the best decoder for given codes, by normal equations summed batch by batch.

    Attributes:
        counts: int32 [latents, latents], tokens on which each pair of latents fired; only the upper
            triangle is filled, because the matrix is symmetric.
        target_sums: float64 [latents, d_out], sum of the targets over tokens on which a latent
            fired.
        target_sum: float64 [d_out], sum of all targets.
        tokens: number of tokens added.
    """

    def __init__(self, latents: int, d_out: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(latents, latents, dtype=torch.int32, device=device)
        self.target_sums = torch.zeros(latents, d_out, dtype=torch.float64, device=device)
        self.target_sum = torch.zeros(d_out, dtype=torch.float64, device=device)
        self.tokens = 0

    @torch.no_grad()
    def add(self, active: Tensor, target: Tensor) -> None:
        """Add codes, bool [tokens, latents], and targets [tokens, d_out].

        A call takes fewer than 2^24 tokens, because float32 counts exactly up to there.
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
        """The decoder of least squared error, pulled a little towards the old decoder.

        Minimises the sum over tokens of |target - codes @ W - b|^2, plus pull * |W - weight|^2,
        from the old decoder: weight [latents, d_out] and bias [d_out]. The pull is in tokens and
        must be positive. A latent that never fired keeps its row. The bias does not change if
        fits_bias is false. Solves in float64; returns W and b in the dtypes of weight and bias.
        """
        before = weight.double()
        gram = (self.counts + self.counts.triu(1).T).double()
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


@torch.no_grad()
def refit_decoder(
    coder: BinaryCoder, batches: Iterable[tuple[Tensor, Tensor]], pull: float = PULL
) -> int:
    """Give a coder the decoder of least squared error for its codes on the tokens of `batches`.

    b_dec is fitted too, unless the coder subtracts b_dec from its input: then its codes depend on
    b_dec, which therefore stays.

    Args:
        coder: a binary autoencoder or transcoder, changed in place.
        batches: inputs [tokens, d_in] and targets [tokens, d_out], a few thousand tokens each; the
            targets of an autoencoder are its inputs.
        pull: how strongly a row is held to its old value, in tokens on which its latent fires.

    Returns:
        The number of tokens that the decoder was fitted to.

    Raises:
        ValueError: pull is not positive, or there are no batches.
    """
    if not pull > 0:
        raise ValueError(f"pull={pull!r}: give a positive number of tokens.")
    fit = DecoderFit(*coder.W_dec.shape, device=coder.W_dec.device)
    with heads_side_by_side(coder):
        for x, target in batches:
            fit.add(coder.encode(x) != 0, decoder_target(coder, x, target))
    if fit.tokens == 0:
        raise ValueError("batches: no activations to refit the decoder on.")
    subtracts = coder.cfg.apply_b_dec_to_input
    weight, bias = fit.solve(coder.W_dec, coder.b_dec, pull, fits_bias=not subtracts)
    coder.W_dec.copy_(weight)
    coder.b_dec.copy_(bias)
    return fit.tokens


def decoder_target(coder: Any, x: Tensor, target: Tensor) -> Tensor:
    """What the sum of active decoder rows and b_dec should give, [tokens, d_out]."""
    if isinstance(coder.cfg, TranscoderFields):
        return target if coder.W_skip is None else target - x @ coder.W_skip.T
    # Take the input in the encoder's form: reshaped and normalised.
    return coder.process_sae_in(x) + coder.b_dec * coder.cfg.apply_b_dec_to_input


@dataclass(frozen=True)
class Refitted:
    """FVU with the old and the new decoder, on text after the tokens that were fitted."""

    fitted_tokens: int
    measured_tokens: int
    fvu_before: float
    fvu_after: float


def refit(
    source: str | Path,
    out: str | Path,
    text: Text,
    hookpoint: str | None = None,
    pull: float = PULL,
) -> Refitted:
    """Refit the decoder of a saved binary coder of either host.

    Args:
        source, hookpoint: a saved coder; both as in checkpoints.load_coder.
        out: folder of the refitted coder, in the format of the old one.
        text: the text to fit to. The tokens after it, one tenth more, are used to measure.
        pull: as in refit_decoder.

    Raises:
        CheckpointError: the coder does not exist, or SAELens does not have its architecture.
        ValueError: the codes have values, the coder's files do not name its hook and model, the
            text is too short, or `out` holds figures of another decoder.
    """
    name, folder = sources.find_coder(source, hookpoint)
    portable = sources.read_coder(folder, sources.stated_place(name, hookpoint))
    if not portable.shape.binary:
        raise ValueError(f"{source}: its codes have values. Give a binary coder.")
    if (Path(out) / sources.METRICS_FILE).exists():
        raise ValueError(
            f"{out}: holds the {sources.METRICS_FILE} of another decoder. Choose a new folder."
        )
    coder: Any = saelens.to_coder(placed(portable, "saelens"))
    unfitted = copy.deepcopy(coder)
    activations = read_activations(coder, text)
    fitted = refit_decoder(coder, _take(activations, text.tokens), pull)
    measured = list(_take(activations, math.ceil(text.tokens * MEASURED_SHARE)))
    if not measured:
        raise ValueError(
            f"dataset={text.dataset!r}: ends after {fitted} tokens, so none are left to measure "
            f"on. Give tokens of at most {fitted - fitted // 8}."
        )
    inputs, targets = (torch.cat(each) for each in zip(*measured, strict=True))
    fvu = [measure(each, inputs, targets).fvu for each in (unfitted, coder)]
    fields = {"decoder_weight": coder.W_dec, "decoder_bias": coder.b_dec}
    decoder = {name: value.detach().to(portable.dtype) for name, value in fields.items()}
    refitted = replace(portable, tensors=portable.tensors | decoder)
    # Copy the file of firing rates, because codes stay the same. Other figures are out of date.
    write_coder(refitted, Path(out), str(format_of(folder)), [folder / sources.SPARSITY_FILE])
    return Refitted(fitted, len(inputs), *fvu)


def _take(
    activations: Iterator[tuple[Tensor, Tensor]], tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The next tokens of the stream, in whole batches; fewer if the stream ends."""
    with tqdm(total=tokens, unit="tokens", unit_scale=True, leave=False) as progress:
        taken = 0
        while taken < tokens and (pair := next(activations, None)) is not None:
            taken += len(pair[0])
            progress.update(len(pair[0]))
            yield pair


@torch.no_grad()
def with_latents(coder: AnyCoder, latents: Tensor) -> AnyCoder:
    """A coder made of some latents, int64 [new d_sae], of another coder; at least one latent.

    The same latent may occur twice.
    """
    if not len(latents):
        raise ValueError(
            f"latents=[]: a coder needs at least one of the {coder.cfg.d_sae} latents. If no "
            "latent was worth its bits, train longer or lower the price of a bit."
        )
    metadata: Any = copy.deepcopy(coder.cfg.metadata)
    # Remove these figures of SAELens, because they are for all latents of the old coder.
    for name in ("l0", "num_dead_features"):
        metadata.__dict__.pop(name, None)
    chosen = type(coder)(replace(coder.cfg, d_sae=len(latents), metadata=metadata))
    state = coder.state_dict()
    for name in state.keys() & DIMENSION_OF_LATENTS.keys():
        own = latents.to(state[name].device)
        state[name] = state[name].index_select(DIMENSION_OF_LATENTS[name], own)
    chosen.load_state_dict(state)
    return chosen
