"""Reads a text once for all coders, and labels its tokens and documents."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from sae_binary_ext.coding import pack
from sae_binary_ext.commands.rules.config import COLUMN, NEXT, Label, RulesConfig
from sae_binary_ext.commands.rules.rule_codes import LabelledRows, PackedCodes, half_of_documents
from sae_binary_ext.measure.documents import read_entries, token_texts
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text


@dataclass
class _ReadCoder:
    """Packed codes of a coder: of tokens in parts, and of each document by its number."""

    latents: int
    parts: list[Tensor] = field(default_factory=list)
    documents: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledText:
    """Tokens that count, and the codes of all coders.

    Attributes:
        tokens, following: int64 [tokens], ids of the tokens, and of the next tokens in their rows;
            -1 after the last one.
        documents: int64 [tokens], the number of each token's document.
        codes: codes of tokens by coder.
        document_codes: codes of documents by coder, in the order of their numbers. A latent is
            active if it fires on any token of the document.
        text_of: gives the text of a token id.
    """

    tokens: Tensor
    following: Tensor
    documents: Tensor
    codes: dict[str, PackedCodes]
    document_codes: dict[str, PackedCodes]
    text_of: Callable[[int], str]

    def labelled(self, label: Label, config: RulesConfig) -> tuple[Tensor | None, LabelledRows]:
        """Rows of a label, and the tokens that they are, int64; None if rows are documents.

        ValueError if the rows of one half all have the label, or none has.
        """
        if label.kind == COLUMN:
            numbers = self.documents.unique()
            values = column_values(config, label, int(numbers[-1]) + 1)
            found = torch.tensor([values[number] == label.value for number in numbers.tolist()])
            return None, _halved(label, found, numbers)
        ids = self.following if label.kind == NEXT else self.tokens
        chosen = (ids >= 0).nonzero()[:, 0]
        matches = re.compile(label.of).search
        known, own = ids[chosen].unique(return_inverse=True)
        found = torch.tensor([bool(matches(self.text_of(token))) for token in known.tolist()])
        return chosen, _halved(label, found[own], self.documents[chosen])


def _halved(label: Label, labels: Tensor, documents: Tensor) -> LabelledRows:
    fitting = half_of_documents(documents)
    for half in (fitting, ~fitting):
        if labels[half].all() or not labels[half].any():
            raise ValueError(
                f"labels={label.text!r}: {int(labels.sum())} of {len(labels)} rows have the label, "
                "and each half of the documents needs rows with it and without it. Give another "
                "label, or more tokens."
            )
    return LabelledRows(labels, documents, fitting)


def column_values(config: RulesConfig, label: Label, number: int) -> list[str]:
    """Values of a label's column in the first entries of the dataset, as text.

    ValueError if the dataset has no such column.
    """
    values: list[str] = []
    for entry in islice(read_entries(config.text_source()), number):
        if label.of not in entry:
            raise ValueError(
                f"labels={label.text!r}: dataset {config.dataset!r} has no column {label.of!r}. "
                f"Its columns are {sorted(entry)}."
            )
        values.append(str(entry[label.of]))
    return values


def read_labelled(opened: OpenedModel, config: RulesConfig) -> LabelledText:
    """Read the text; keep codes of documents only if a label is of a column."""
    columns = [label for label in config.read_labels() if label.kind == COLUMN]
    for label in columns:
        column_values(config, label, 1)  # reports a wrong column before minutes of reading
    tokens: list[Tensor] = []
    following: list[Tensor] = []
    documents: list[Tensor] = []
    found = {each.name: _ReadCoder(each.coder.cfg.d_sae) for each in opened.candidates}
    for batch in read_text(opened, config):
        where, text = batch.where, batch.text
        tokens.append(text.tokens[where])
        following.append(_next_tokens(batch)[where])
        documents.append(torch.tensor(text.documents)[where.nonzero()[:, 0]])
        for candidate in opened.candidates:
            hook = opened.hooks[candidate.site][0]
            active = (batch.codes(candidate.coder, hook) != 0).cpu()
            coder = found[candidate.name]
            coder.parts.append(pack(active))
            for number in documents[-1].unique().tolist() if columns else ():
                own = pack(active[documents[-1] == number].any(0))
                coder.documents[number] = coder.documents.get(number, own) | own
    return LabelledText(
        torch.cat(tokens),
        torch.cat(following),
        torch.cat(documents),
        {name: PackedCodes(torch.cat(each.parts), each.latents) for name, each in found.items()},
        {
            name: PackedCodes(
                torch.stack([each.documents[key] for key in sorted(each.documents)]), each.latents
            )
            for name, each in found.items()
            if columns
        },
        token_texts(opened.tokenizer),
    )


def _next_tokens(batch: ReadBatch) -> Tensor:
    """int64 [rows, context], the next token of each position; -1 at the end of a row's text."""
    tokens, lengths = batch.text.tokens, batch.text.lengths
    following = torch.full_like(tokens, -1)
    following[:, :-1] = tokens[:, 1:]
    last = torch.arange(tokens.shape[1]) >= lengths[:, None] - 1
    return following.masked_fill(last, -1)
