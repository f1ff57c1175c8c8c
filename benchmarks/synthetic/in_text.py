"""How many latents it takes to tell a continuous feature of a text: numbers, and sentence position.

python -m benchmarks.synthetic.in_text CODER ... [--tokens 150000] [--folder runs/in_text]

The features are the size of a number (log10, at its last digit) and the place in a sentence (log2
of one more than the number of tokens since its start). On one half of the documents, orthogonal
matching pursuit chooses latents that tell the feature, and on the other half the share of its
variance that they explain is measured. Prints a table for docs/synthetic.md.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.linear_model import OrthogonalMatchingPursuit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.tables import table_of
from sae_binary_ext.measure.documents import (
    Estimate,
    TextBatch,
    document_weights,
    estimate_of,
    token_texts,
)
from sae_binary_ext.measure.reading import OpenedModel, open_coders, read_text
from sae_binary_ext.report.tables import shown
from sae_binary_ext.settings import ReadingConfig

NUMBERS = (1, 2, 4, 8, 16)
# Tokens to keep for each feature. A latent that fires on fewer tokens of the first half is
# not chosen.
MOST_TOKENS, FEWEST_FIRINGS = 20_000, 10
SENTENCE_ENDS = (".", "!", "?")
# Numbers of more digits are codes rather than quantities.
MOST_DIGITS = 9


def number_sizes(texts: list[str]) -> list[float]:
    """log10 of each number at its last token, NaN elsewhere; `texts` are tokens of one row."""
    sizes, digits = [math.nan] * len(texts), ""
    for place, text in enumerate([*texts, ""]):
        if text.strip().isdecimal() and not (digits and text != text.lstrip()):
            digits += text.strip()
            continue
        if digits and len(digits) <= MOST_DIGITS and int(digits) > 0:
            sizes[place - 1] = math.log10(int(digits))
        digits = text.strip() if text.strip().isdecimal() else ""
    return sizes


def sentence_places(texts: list[str]) -> list[float]:
    """log2(1 + n) for the n-th token of a sentence, from 0; NaN before the first whole sentence."""
    places, since = [math.nan] * len(texts), math.nan
    for place, text in enumerate(texts):
        places[place] = math.log2(1 + since)
        since = 0 if text.strip().endswith(SENTENCE_ENDS) else since + 1
    return places


FEATURES: dict[str, Callable[[list[str]], list[float]]] = {
    "size of a number": number_sizes,
    "place in a sentence": sentence_places,
}


@dataclass(frozen=True)
class Samples:
    """Tokens with a feature: codes [tokens, latents], values [tokens], documents int64 [tokens]."""

    codes: Tensor
    values: Tensor
    documents: Tensor

    def half(self, odd: int) -> "Samples":
        """The tokens of documents with odd or even numbers."""
        own = self.documents % 2 == odd
        return Samples(self.codes[own], self.values[own], self.documents[own])


def values_of(text: TextBatch, tokenizer: PreTrainedTokenizerBase, feature: str) -> Tensor:
    """float64 [rows, context]: the feature at each token, NaN where it has no value."""
    decode = token_texts(tokenizer)
    found = torch.full(text.tokens.shape, torch.nan, dtype=torch.float64)
    for row, (tokens, length) in enumerate(zip(text.tokens, text.lengths.tolist(), strict=True)):
        texts = [decode(token) for token in tokens[:length].tolist()]
        found[row, :length] = torch.tensor(FEATURES[feature](texts), dtype=torch.float64)
    return found


def read_samples(opened: OpenedModel, config: ReadingConfig, feature: str) -> dict[str, Samples]:
    """Codes of all coders at tokens where a feature has a value: about MOST_TOKENS, or all.

    Each batch gives its share of them, drawn at random, so that they are of many documents.
    """
    generator = torch.Generator().manual_seed(0)
    kept: dict[str, list[Tensor]] = {each.name: [] for each in opened.candidates}
    values: list[Tensor] = []
    documents: list[Tensor] = []
    for batch in read_text(opened, config, feature.capitalize()):
        found = values_of(batch.text, opened.tokenizer, feature)
        known = batch.where & ~found.isnan()
        share = MOST_TOKENS * int(batch.where.sum()) / config.tokens
        if not known.any():
            continue
        drawn = torch.rand(known.shape, generator=generator) < share / int(known.sum())
        known &= drawn
        of_rows = torch.tensor(batch.text.documents)[:, None].expand_as(known)
        values.append(found[known])
        documents.append(of_rows[known])
        for each in opened.candidates:
            codes = batch.codes(each.coder, opened.hooks[each.site][0])
            kept[each.name].append(codes[known[batch.where]].float().cpu())
    return {
        name: Samples(torch.cat(codes), torch.cat(values), torch.cat(documents))
        for name, codes in kept.items()
    }


def explained(samples: Samples, latents: int) -> Estimate:
    """Share of a feature's variance that so many latents explain, on documents not chosen on."""
    fitted, measured = samples.half(0), samples.half(1)
    often = ((fitted.codes != 0).sum(0) >= FEWEST_FIRINGS).nonzero()[:, 0]
    # The pursuit compares products with the residual, so codes need one scale.
    pursuit = OrthogonalMatchingPursuit(n_nonzero_coefs=min(latents, len(often)))
    chosen = make_pipeline(StandardScaler(), pursuit)
    chosen.fit(fitted.codes[:, often].double().numpy(), fitted.values.numpy())
    told = torch.from_numpy(chosen.predict(measured.codes[:, often].double().numpy()))
    return share_explained(measured.values, told, measured.documents)


def share_explained(values: Tensor, told: Tensor, documents: Tensor) -> Estimate:
    """1 - squared error over variance, each [tokens], with an interval over documents."""
    numbers, owners = documents.unique(return_inverse=True)
    sums = torch.zeros(len(numbers), 4, dtype=torch.float64)
    figures = [torch.ones_like(values), values, values.square(), (values - told).square()]
    sums.index_add_(0, owners, torch.stack(figures, dim=1))
    tokens, first, second, error = (document_weights(numbers.tolist()).T @ sums).T
    return estimate_of(1 - error / (second - first.square() / tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("coders", nargs="+")
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/in_text"))
    arguments = parser.parse_args()
    config = ReadingConfig(tokens=arguments.tokens, output=arguments.folder)
    opened = open_coders(arguments.coders, config, config.output)
    head = [f"{number} latent{'s' * (number > 1)}" for number in NUMBERS]
    rows = [["feature", "tokens", "coder", *head]]
    for feature in FEATURES:
        for name, samples in read_samples(opened, config, feature).items():
            forms = {name: samples}
            ones = (samples.codes != 0).float()
            if not torch.equal(ones, samples.codes):
                active = Samples(ones, samples.values, samples.documents)
                forms = {f"{name}, values": samples, f"{name}, active latents": active}
            for form, own in forms.items():
                cells = [" ".join(shown(explained(own, number), ".2f")) for number in NUMBERS]
                rows.append([feature, f"{len(own.values):,}", form, *cells])
    print(table_of(rows))


if __name__ == "__main__":
    main()
