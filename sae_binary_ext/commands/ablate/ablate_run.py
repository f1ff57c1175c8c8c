"""`sae-binary ablate`: the error and loss of a model when latents are changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.ablate.ablate_page import Ablated, Rise, ablate_page
from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.measure.candidates import Site
from sae_binary_ext.measure.documents import TextBatch, WeightedSums, document_weights, estimate_of
from sae_binary_ext.measure.figures import RunningVariance
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, output_of_changed
from sae_binary_ext.measure.latent_groups import RANKINGS, RunningLatents, ranked_groups
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import Splice

Change = Callable[[Tensor, Tensor], Tensor]


def zero(codes: Tensor, latents: Tensor) -> Tensor:
    """Silence some latents, int64, in codes [..., latents]."""
    return codes.index_fill(-1, latents, 0.0)


def flip(codes: Tensor, latents: Tensor) -> Tensor:
    """Turn 0 to 1 and 1 to 0 for some latents, int64, in codes [..., latents]."""
    return codes.index_copy(-1, latents, 1 - codes[..., latents])


CHANGES: dict[str, Change] = {"zero": zero, "flip": flip}


@dataclass(frozen=True)
class _Rows:
    """Rows of text that changes are measured on."""

    text: TextBatch
    where: Tensor
    weights: Tensor

    @property
    def predicts(self) -> Tensor:
        """bool [rows, context - 1]: predictions at positions whose activations are replaced."""
        return self.where[:, :-1] & self.text.positions(0)[:, 1:]


def run_ablate(coders: list[str], config: AblateConfig) -> Analysis:
    """Change latents of coders and measure; arguments and errors as analyse_coders has them.

    Raises:
        ValueError: also if codes with values are to be flipped.
    """
    return analyse_coders(coders, config, _measure, ablate_page)


def _measure(opened: OpenedModel, config: AblateConfig) -> list[Ablated]:
    for candidate in opened.candidates:
        if config.change == "flip" and not isinstance(candidate.coder, BinaryCoder):
            raise ValueError(
                f"change='flip': {candidate.name} has codes with values, and a silent latent has "
                "no value to flip to. Use change='zero'."
            )
    rows, variances, running = _read(opened, config)
    change = CHANGES[config.change]
    found: list[Ablated] = []
    for candidate in opened.candidates:
        counted = running[candidate.name]
        scores = RANKINGS[config.ranking](counted, candidate.coder.W_dec.detach())
        groups = list(ranked_groups(counted, scores, config.groups, config.latents, config.seed))
        splice = Splice(opened.model, *opened.hooks[candidate.site])
        totals = variances[candidate.site].totals()
        measuring = _Measuring(candidate.coder, splice, rows, totals, counted.fired)
        for group in tqdm(groups, candidate.name, unit="groups"):
            random = measuring.rise(change, group.others) if len(group.others) else None
            changed = measuring.rise(change, group.latents)
            found.append(Ablated(candidate.name, group, changed, random))
    return found


def _read(
    opened: OpenedModel, config: AblateConfig
) -> tuple[list[_Rows], dict[Site, RunningVariance], dict[str, RunningLatents]]:
    """Read the text: the rows to measure changes on, their variance, and all latents' firing.

    The rows are spread over all of the text, because an interval needs several documents.
    """
    chosen: list[tuple[TextBatch, Tensor]] = []
    variances = {each.site: RunningVariance(each.d_out) for each in opened.candidates}
    running = {each.name: RunningLatents(each.coder.cfg.d_sae) for each in opened.candidates}
    every, number = max(config.tokens // config.spliced_tokens, 1), 0
    for batch in read_text(opened, config):
        text = batch.text
        rows = (torch.arange(number, number + len(text.lengths)) % every == 0).nonzero()[:, 0]
        number += len(text.lengths)
        chosen.append((_rows_of(text, rows), batch.where[rows]))
        where = torch.zeros_like(batch.where).index_copy(0, rows, batch.where[rows])
        measured = ReadBatch(text, where, batch.found)
        weights = document_weights(text.documents)
        for site, variance in variances.items():
            if where.any():
                variance.add(measured.tokens(opened.hooks[site], weights, with_rows=False))
        for candidate in opened.candidates:
            codes = batch.codes(candidate.coder, opened.hooks[candidate.site][0])
            running[candidate.name].add(codes)
    return _in_batches(chosen), variances, running


def _rows_of(text: TextBatch, rows: Tensor) -> TextBatch:
    documents = [text.documents[row] for row in rows.tolist()]
    return TextBatch(text.tokens[rows], text.lengths[rows], documents)


def _in_batches(chosen: list[tuple[TextBatch, Tensor]]) -> list[_Rows]:
    tokens = torch.cat([text.tokens for text, _ in chosen])
    lengths = torch.cat([text.lengths for text, _ in chosen])
    where = torch.cat([where for _, where in chosen])
    whole = TextBatch(tokens, lengths, [d for text, _ in chosen for d in text.documents])
    return [
        _Rows(text, where[rows], document_weights(text.documents))
        for rows in torch.arange(len(lengths)).split(ROWS_PER_FORWARD)
        for text in [_rows_of(whole, rows)]
    ]


class _Measuring:
    """Measures changes of one coder's latents, against its unchanged output on the same rows."""

    def __init__(
        self, coder: Any, splice: Splice, rows: list[_Rows], variance: Tensor, fired: Tensor
    ) -> None:
        self._coder, self._splice, self._rows = coder, splice, rows
        self._variance, self._fired = variance, fired
        predictions = WeightedSums(1)
        for row in rows:
            predictions.add(row.predicts.sum(1, keepdim=True), row.weights)
        self._predictions = predictions.sums[:, 0]
        self._unchanged = self._sums(lambda codes: codes)

    def rise(self, change: Change, latents: Tensor) -> Rise:
        """How far changing these latents, int64, raises error and loss."""
        latents = latents.to(self._coder.device)
        raised = self._sums(lambda codes: change(codes, latents)) - self._unchanged
        return Rise(
            (self._fired[latents.cpu()].sum() / self._fired.sum()).item(),
            estimate_of(raised[:, 0] / self._variance),
            estimate_of(raised[:, 1] / self._predictions),
        )

    def _sums(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """float64 [1 + replicates, 2]: squared error and losses, summed."""
        sums = WeightedSums(2)
        for row in self._rows:
            error = torch.zeros(len(row.where), dtype=torch.float64)

            def replacement(
                source: Tensor, target: Tensor, error: Tensor = error, row: _Rows = row
            ) -> Tensor:
                output = output_of_changed(self._coder, source, change)
                squared = (output - target.to(output)).double().square().sum(-1).cpu()
                error.copy_(torch.where(row.where, squared, 0.0).sum(1))
                return output

            losses = self._splice.replaced(row.text.tokens, row.where, replacement).double().cpu()
            lost = torch.where(row.predicts, losses, 0.0).sum(1)
            sums.add(torch.stack([error, lost], dim=1), row.weights)
        return sums.sums
