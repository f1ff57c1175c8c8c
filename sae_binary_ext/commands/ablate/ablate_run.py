"""`sae-binary ablate`: measures error and loss of a model if latents are changed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.ablate.ablate_page import Ablated, Rise, ablate_page
from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, read_scores
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.documents import TextBatch, WeightedSums, document_weights, estimate_of
from sae_binary_ext.measure.figures import RunningVariance
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, output_of_changed
from sae_binary_ext.measure.latent_groups import RANKINGS, RunningLatents, ranked_groups
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import Splice

Change = Callable[[Tensor], Tensor]
# Batches of text, each with the positions to replace, bool [rows, context].
Rows = list[tuple[TextBatch, Tensor]]
Read = tuple[Rows, dict[Site, RunningVariance], dict[str, RunningLatents]]


def zero(codes: Tensor, latents: Tensor) -> Tensor:
    """Silence some latents, int64, in codes [..., latents]."""
    return codes.index_fill(-1, latents, 0.0)


def flip(codes: Tensor, latents: Tensor) -> Tensor:
    """Turn 0 to 1 and 1 to 0 for some latents, int64, in codes [..., latents]."""
    return codes.index_copy(-1, latents, 1 - codes[..., latents])


CHANGES = {"zero": zero, "flip": flip}


def run_ablate(coders: list[str], config: AblateConfig) -> Analysis:
    """Change latents of coders and measure; arguments and errors as for analyse_coders.

    Also raises ValueError if change="flip" and a coder's codes have values.
    """
    return analyse_coders(coders, config, _measure, ablate_page)


def _measure(opened: OpenedModel, config: AblateConfig) -> list[Ablated]:
    for candidate in opened.candidates:
        if config.change == "flip" and not isinstance(candidate.coder, BinaryCoder):
            raise ValueError(
                f"change='flip': {candidate.name} has codes with values, and a silent latent has "
                "no value to flip to. Use change='zero'."
            )
    coders = opened.candidates
    # Read the scores first, so that a mistake is reported before minutes of reading text.
    scores: dict[str, Tensor] = {}
    if config.scores is not None:
        saved = read_scores(config.scores)
        for each in coders:
            scores[each.name] = judged(saved, each.name, config.judge, each.coder.cfg.d_sae)
    read = _read(opened, config)
    return [
        each
        for coder in coders
        for each in _ablated(coder, opened, read, config, scores.get(coder.name))
    ]


def _read(opened: OpenedModel, config: AblateConfig) -> Read:
    """Read the text; return the rows to measure on, their variance, and firings of all latents.

    The rows are spread over the text, because an interval needs several documents.
    """
    chosen: list[tuple[Any, ...]] = []
    variances = {each.site: RunningVariance(each.d_out) for each in opened.candidates}
    running = {each.name: RunningLatents(each.coder.cfg.d_sae) for each in opened.candidates}
    every, number = max(config.tokens // config.spliced_tokens, 1), 0
    for batch in read_text(opened, config):
        text = batch.text
        rows = (torch.arange(number, number + len(text.lengths)) % every == 0).nonzero()[:, 0]
        number += len(text.lengths)
        documents = [text.documents[row] for row in rows.tolist()]
        kept = batch.where[rows]
        chosen += zip(text.tokens[rows], text.lengths[rows], documents, kept, strict=True)
        where = torch.zeros_like(batch.where).index_copy(0, rows, kept)
        measured = ReadBatch(text, where, batch.found)
        weights = document_weights(text.documents)
        for site, variance in variances.items():
            if where.any():
                variance.add(measured.tokens(opened.hooks[site], weights, with_rows=False))
        for candidate in opened.candidates:
            codes = batch.codes(candidate.coder, opened.hooks[candidate.site][0])
            running[candidate.name].add(codes)
    batches: Rows = []
    for first in range(0, len(chosen), ROWS_PER_FORWARD):
        of_batch = chosen[first : first + ROWS_PER_FORWARD]
        tokens, lengths, documents, where = zip(*of_batch, strict=True)
        text = TextBatch(torch.stack(tokens), torch.stack(lengths), list(documents))
        batches.append((text, torch.stack(where)))
    return batches, variances, running


def _ablated(
    candidate: Candidate,
    opened: OpenedModel,
    read: Read,
    config: AblateConfig,
    scores: Tensor | None,
) -> Iterator[Ablated]:
    """Change groups of one coder's latents; compare with its unchanged output on the same rows.

    scores, float64 [latents], take the place of the ranking's own if they are given.
    """
    coder: Any = candidate.coder
    rows, variances, counted = read
    running, variance = counted[candidate.name], variances[candidate.site].totals()
    splice = Splice(opened.model, *opened.hooks[candidate.site])
    weights = [document_weights(text.documents) for text, _ in rows]

    def sums(change: Change) -> Tensor:
        found = WeightedSums(3)
        for (text, where), of_rows in zip(rows, weights, strict=True):
            found.add(_error_and_loss(coder, splice, text, where, change), of_rows)
        return found.sums

    unchanged = sums(lambda codes: codes)

    def rise(latents: Tensor) -> Rise:
        own = latents.to(coder.device)
        raised = sums(lambda codes: CHANGES[config.change](codes, own)) - unchanged
        return Rise(
            (running.fired[latents].sum() / running.fired.sum()).item(),
            estimate_of(raised[:, 0] / variance),
            estimate_of(raised[:, 1] / unchanged[:, 2]),
        )

    if scores is None:
        scores = RANKINGS[config.ranking](running, coder.W_dec.detach())
    groups = list(ranked_groups(running, scores, config.groups, config.latents, config.seed))
    for group in tqdm(groups, candidate.name, unit="groups"):
        random = rise(group.others) if len(group.others) else None
        yield Ablated(candidate.name, group, rise(group.latents), random)


def judged(scores: list[LatentScore], coder: str, judge: str | None, latents: int) -> Tensor:
    """Areas of a coder's latents by a judge, float64 [latents]; NaN where there is no score.

    ValueError if the scores are not of this coder and judge, or of several judges and none is
    named.
    """
    for field, value in (("coder", coder), ("judge", judge)):
        known = sorted({getattr(score, field) for score in scores})
        if (value is None and len(known) > 1) or (value is not None and value not in known):
            raise ValueError(
                f"scores: {field}={value!r}, and the file has scores of {', '.join(known)}. Name "
                f"one {field} of these."
            )
        scores = [score for score in scores if value in (None, getattr(score, field))]
    found = torch.full((latents,), torch.nan, dtype=torch.float64)
    for score in scores:
        if score.area is not None:
            found[score.latent] = score.area
    return found


def _error_and_loss(
    coder: Any, splice: Splice, text: TextBatch, where: Tensor, change: Change
) -> Tensor:
    """float64 [rows, 3]: squared error, losses, and number of predictions, summed over each row.

    `change` is a function from codes [rows, context, latents] to changed codes.
    """
    error = torch.zeros(len(where), dtype=torch.float64)

    def replacement(source: Tensor, target: Tensor) -> Tensor:
        output = output_of_changed(coder, source, change)
        squared = (output - target.to(output)).double().square().sum(-1).cpu()
        error.copy_(torch.where(where, squared, 0.0).sum(1))
        return output

    losses = splice.replaced(text.tokens, where, replacement).double().cpu()
    # A prediction counts if the activation at its position is replaced.
    predicts = where[:, :-1] & text.positions(0)[:, 1:]
    loss = torch.where(predicts, losses, 0.0).sum(1)
    return torch.stack([error, loss, predicts.sum(1)], dim=1)
