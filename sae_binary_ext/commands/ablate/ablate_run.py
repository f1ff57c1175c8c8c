"""`sae-binary ablate`: what reconstruction and model lose when latents are changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.measure.applied import output_of_changed
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.figures import RunningVariance, TokenBatch
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.intervals import (
    Estimate,
    WeightedSums,
    document_weights,
    estimate_of,
)
from sae_binary_ext.measure.latent_groups import (
    RANKINGS,
    LatentGroup,
    RunningLatents,
    ranked_groups,
)
from sae_binary_ext.measure.reading import OpenedModel, open_coders, read_text, settings_of
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.report.plots import error_bars
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import Splice

Change = Callable[[Tensor, Tensor], Tensor]


def zero(codes: Tensor, latents: Tensor) -> Tensor:
    """Codes [..., latents] with those of some latents, int64, silent."""
    return codes.index_fill(-1, latents, 0.0)


def flip(codes: Tensor, latents: Tensor) -> Tensor:
    """Codes of 0 and 1, [..., latents], with those of some latents the other way round."""
    return codes.index_copy(-1, latents, 1 - codes[..., latents])


CHANGES: dict[str, Change] = {"zero": zero, "flip": flip}
REMARKS = (
    "Latents are changed in the codes, the codes decoded, and the output put into the model. "
    "Shown is by how much that raises the FVU of the output and the cross-entropy of the model, "
    "over the coder's output with all latents as they are, on the same tokens. Each group has "
    "an equal share of all firings, as far as latents can be shared out; beside it stand random "
    "latents of other groups that fire about as often, one for each. In a ranking by rate or "
    "burstiness no others fire as often as a whole group does: compare the shares of ones.",
    "Burstiness is log2 |h - rate| of a latent's rarer state, so that it tells no more than the "
    "rate does: rare latents and almost always active ones come first. Effect is the norm of "
    "the decoder row times the standard deviation of the code.",
    "A latent whose loss does not rise may still matter where others stand in for it; groups "
    "tell more than latents one by one. Zero silences a latent; flip makes it active where it "
    "was silent as well, on nearly every token for a rare one, and more than k latents of a "
    "topk coder active.",
    "Brackets: 95% of bootstrap replicates over documents.",
)
COLUMNS = (
    Column("coder"),
    Column("changed"),
    Column("latents", "How many.", "d"),
    Column("ones", "Their share of all firings.", ".1%"),
    Column("FVU +", "Rise of the FVU.", ".4f"),
    Column("loss +", "Rise of the cross-entropy, in nats a prediction.", ".4f"),
    Column("ones, random", "Share of all firings of the random latents.", ".1%"),
    Column("FVU +, random", "Rise of the FVU with the random latents changed.", ".4f"),
    Column("loss +, random", "Rise of the cross-entropy with these changed, in nats.", ".4f"),
)


@dataclass(frozen=True)
class Rise:
    """What a change raises.

    Attributes:
        ones: share of all firings that are of the latents changed.
        fvu: rise of the FVU.
        loss: rise of the cross-entropy, in nats a prediction.
    """

    ones: float
    fvu: Estimate
    loss: Estimate


@dataclass(frozen=True)
class Ablated:
    """A group of latents and what changing it does.

    Attributes:
        coder: its name.
        group: the latents.
        changed: with the group changed.
        random: with the random latents changed; None where there are none.
    """

    coder: str
    group: LatentGroup
    changed: Rise
    random: Rise | None


@dataclass(frozen=True)
class _Rows:
    """Rows of text that changes are measured on."""

    text: TextBatch
    where: Tensor
    weights: Tensor

    @property
    def predicts(self) -> Tensor:
        """bool [rows, context - 1], predictions of the text made where activations are replaced."""
        return self.where[:, :-1] & self.text.positions(0)[:, 1:]


def run_ablate(coders: list[str], config: AblateConfig) -> Analysis:
    """Change latents of coders and measure; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders that cannot be compared, a text that cannot be read, or codes with values
            that are to be flipped.
    """
    opened = open_coders(coders, config, config.output)
    for candidate in opened.candidates:
        if config.change == "flip" and not isinstance(candidate.coder, BinaryCoder):
            raise ValueError(
                f"change='flip': {candidate.name} has codes with values, and a silent latent has "
                "no value to flip to. Use change='zero'."
            )
    rows, variances, running = _read(opened, config)
    found: list[Ablated] = []
    for candidate in opened.candidates:
        counted = running[candidate.name]
        scores = RANKINGS[config.ranking](counted, candidate.coder.W_dec.detach())
        groups = list(ranked_groups(counted, scores, config.groups, config.latents, config.seed))
        splice = Splice(opened.model, *opened.hooks[candidate.site])
        measuring = _Measuring(candidate, splice, rows, variances[candidate.site], counted)
        change = CHANGES[config.change]
        for group in tqdm(groups, candidate.name, unit="groups"):
            random = measuring.rise(change, group.others) if len(group.others) else None
            changed = measuring.rise(change, group.latents)
            found.append(Ablated(candidate.name, group, changed, random))
    analysis = Analysis(
        "ablate",
        f"Latents changed: {config.change}, by {config.ranking}",
        REMARKS,
        [Table("What changes raise", COLUMNS, [_cells(each) for each in found])],
        {"Rise of the loss": _bars(found, "loss"), "Rise of the FVU": _bars(found, "fvu")},
        {"groups": [_described(each) for each in found]},
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def _read(
    opened: OpenedModel, config: AblateConfig
) -> tuple[list[_Rows], dict[Site, RunningVariance], dict[str, RunningLatents]]:
    """Firing of all latents, and the rows that changes are measured on with their variance.

    These are spread over all of the text: an interval takes several documents.
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
        measured = torch.zeros_like(batch.where).index_copy(0, rows, batch.where[rows])
        weights = document_weights(text.documents)
        for site, variance in variances.items():
            source, target = (batch.found[name] for name in opened.hooks[site])
            if measured.any():
                tokens = TokenBatch(source[measured], target[measured], text, measured, weights)
                variance.add(tokens)
            for candidate in opened.candidates:
                if candidate.site == site:
                    codes = batch.codes(candidate.coder, opened.hooks[site][0])
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
    """Measures changes of one coder against its output as it is.

    Args:
        candidate: the coder.
        splice: of its site.
        rows: the text.
        variance: of the site's targets there.
        running: how often its latents fire.
    """

    def __init__(
        self,
        candidate: Candidate,
        splice: Splice,
        rows: list[_Rows],
        variance: RunningVariance,
        running: RunningLatents,
    ) -> None:
        self._coder: Any = candidate.coder
        self._splice, self._rows, self._running = splice, rows, running
        self._totals = variance.totals()
        predictions = WeightedSums(1)
        for row in rows:
            predictions.add(row.predicts.sum(1, keepdim=True), row.weights)
        self._predictions = predictions.sums[:, 0]
        self._unchanged = self._sums(lambda codes: codes)

    def rise(self, change: Change, latents: Tensor) -> Rise:
        """What changing these latents, int64, raises."""
        latents = latents.to(self._coder.device)
        raised = self._sums(lambda codes: change(codes, latents)) - self._unchanged
        fired = self._running.fired
        return Rise(
            (fired[latents.cpu()].sum() / fired.sum()).item(),
            estimate_of(raised[:, 0] / self._totals),
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


def _cells(found: Ablated) -> list[Value]:
    changed, random = found.changed, found.random
    others = [None] * 3 if random is None else [random.ones, random.fvu, random.loss]
    return [
        found.coder,
        found.group.name,
        len(found.group.latents),
        changed.ones,
        changed.fvu,
        changed.loss,
        *others,
    ]


def _described(found: Ablated) -> dict[str, Any]:
    def rise(of: Rise | None) -> dict[str, Any] | None:
        return None if of is None else {"ones": of.ones, "fvu": of.fvu, "loss": of.loss}

    return {
        "coder": found.coder,
        "changed": found.group.name,
        "latents": found.group.latents.tolist(),
        "random_latents": found.group.others.tolist(),
        "rise": rise(found.changed),
        "rise_of_random": rise(found.random),
    }


def _bars(found: list[Ablated], measure: str) -> go.Figure:
    figure = go.Figure()
    for coder in dict.fromkeys(each.coder for each in found):
        own = [each for each in found if each.coder == coder]
        kinds = {
            coder: [(each.group.name, each.changed) for each in own],
            f"{coder}, random": [(e.group.name, e.random) for e in own if e.random is not None],
        }
        for name, rises in kinds.items():
            values: list[Estimate] = [getattr(rise, measure) for _, rise in rises]
            figure.add_bar(
                x=[changed for changed, _ in rises],
                y=[value.value for value in values],
                error_y=error_bars(values),
                name=name,
            )
    figure.update_yaxes(title="nats a prediction" if measure == "loss" else "FVU")
    return figure
