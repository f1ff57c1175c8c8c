"""Coders of either host and any format, measured on the same tokens of the same model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.documents import (
    Estimate,
    TextBatch,
    WeightedSums,
    document_weights,
    estimate_of,
)
from sae_binary_ext.measure.figures import CoderFigures, RunningFigures, RunningVariance, TokenBatch
from sae_binary_ext.measure.matching import JointCounts, Matches
from sae_binary_ext.measure.progress import SavedProgress, TextStream, fingerprint
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.measure.samples import LatentSamples, Predictability, predictability
from sae_binary_ext.saelens.splice import Splice
from sae_binary_ext.settings import Amount

# Positions whose logits are compared at once: 100 MB for a vocabulary of 49,152.
POSITIONS_AT_ONCE = 512
PREDICTIONS, CLEAN, ZEROED, MEANED, SPLICED, POSITIONS, DIVERGENCE = range(7)
Replacement = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SplicedFigures:
    """Losses in nats a prediction, at the positions where the activation is replaced.

    Attributes:
        predictions: how many; each row has one fewer than it has positions.
        clean: cross-entropy of the untouched model.
        zero_ablated, mean_ablated: cross-entropy with zeros, and with the mean activation.
        spliced: cross-entropy with the coder's output.
        divergence: KL divergence of the spliced model's predictions from the clean model's.
        recovered_of_zero, recovered_of_mean: share of the loss from ablation that the coder's
            output avoids.
    """

    predictions: int
    clean: Estimate
    zero_ablated: Estimate
    mean_ablated: Estimate
    spliced: Estimate
    divergence: Estimate
    recovered_of_zero: Estimate
    recovered_of_mean: Estimate


class RunningLosses(nn.Module):
    """Running sums for SplicedFigures; a module, so that its state_dict can be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = WeightedSums(7)

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Count rows [rows, 7] of SplicedBatch.losses."""
        self.sums.add(rows, weights)

    def figures(self) -> SplicedFigures:
        """The figures so far."""
        means = self.sums.sums / self.sums.sums[:, :1]
        gaps = means[:, [ZEROED, MEANED]] - means[:, [CLEAN]]
        recovered = (means[:, [ZEROED, MEANED]] - means[:, [SPLICED]]) / gaps
        return SplicedFigures(
            predictions=int(self.sums.sums[0, PREDICTIONS]),
            clean=estimate_of(means[:, CLEAN]),
            zero_ablated=estimate_of(means[:, ZEROED]),
            mean_ablated=estimate_of(means[:, MEANED]),
            spliced=estimate_of(means[:, SPLICED]),
            divergence=estimate_of(self.sums.sums[:, DIVERGENCE] / self.sums.sums[:, POSITIONS]),
            recovered_of_zero=estimate_of(recovered[:, 0]),
            recovered_of_mean=estimate_of(recovered[:, 1]),
        )


class SplicedBatch:
    """A batch of text, run through a model whose activation at one site is replaced.

    `clean` has logits and losses of the untouched model, as Splice.outputs gives them. Positions
    before first_position are not replaced. `mean` is the mean activation at the output, [width].
    """

    def __init__(
        self,
        splice: Splice,
        text: TextBatch,
        clean: tuple[Tensor, Tensor],
        first_position: int,
        mean: Tensor,
    ) -> None:
        self._splice, self._tokens = splice, text.tokens
        self._where = text.positions(first_position)
        # Predictions made at other positions do not depend on a coder.
        self._predicts = self._where[:, :-1] & text.positions(0)[:, 1:]
        self._clean_logits, clean_losses = clean
        _, zeroed = self._outputs(lambda _, target: torch.zeros_like(target))
        _, meaned = self._outputs(lambda _, target: mean.to(target).expand_as(target))
        self._shared = [
            _row_sums(losses, self._predicts)
            for losses in (torch.ones_like(clean_losses), clean_losses, zeroed, meaned)
        ]

    def losses(self, replacement: Replacement) -> Tensor:
        """float64 [rows, 7], sums over each row's predictions; replacement as for Splice."""
        logits, spliced = self._outputs(replacement)
        divergence = _row_sums(_divergences(self._clean_logits, logits), self._where)
        own = [_row_sums(spliced, self._predicts), self._where.sum(1).double(), divergence]
        return torch.stack([*self._shared, *own], dim=1)

    def _outputs(self, replacement: Replacement) -> tuple[Tensor, Tensor]:
        return self._splice.outputs(self._tokens, self._where, replacement)


def _row_sums(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values.to("cpu", torch.float64), 0.0).sum(1)


def _divergences(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) at each position, [rows, context], from logits."""
    found: list[Tensor] = []
    pairs = (logits.flatten(0, 1).split(POSITIONS_AT_ONCE) for logits in (clean, other))
    for one, two in zip(*pairs, strict=True):
        one, two = (logits.float().log_softmax(-1) for logits in (one, two))
        found.append((one.exp() * (one - two)).sum(-1))
    return torch.cat(found).view(clean.shape[:2])


@dataclass(frozen=True)
class ComparedCoder:
    """A coder and its figures.

    Attributes:
        candidate: the coder.
        figures: of its codes and outputs.
        losses: of the model with its outputs in place.
        samples: some of its latents in their text.
        predictability: how well the tokens predict the firing of these latents.
        matches: by the name of each other coder at its site, the latents that fire most like these.
    """

    candidate: Candidate
    figures: CoderFigures
    losses: SplicedFigures
    samples: LatentSamples
    predictability: Predictability
    matches: dict[str, Matches]


class _Sums(nn.Module):
    """All counts of a comparison, for one state_dict."""

    def __init__(self, candidates: list[Candidate], sites: list[Site], samples: int) -> None:
        super().__init__()
        widths = {each.site: each.d_out for each in candidates}
        self.variances = [RunningVariance(widths[site]) for site in sites]
        self.figures = [RunningFigures(each.coder, samples) for each in candidates]
        self.losses = [RunningLosses() for _ in candidates]
        # By two places in the list: sampled latents of the first coder, all latents of the second.
        self.joint = {
            (one, other): JointCounts(len(self.figures[one].samples.latents), width)
            for one, other in permutations(range(len(candidates)), 2)
            if candidates[one].site == candidates[other].site
            for width in [candidates[other].coder.cfg.d_sae]
        }
        for name in ("variances", "figures", "losses"):
            self.add_module(f"all_{name}", nn.ModuleList(getattr(self, name)))
        self.add_module("all_joint", nn.ModuleList(self.joint.values()))


class Comparison:
    """Measures coders together: a forward pass of the model serves all of them.

    Args:
        opened: the coders, autoencoders or transcoders, with their model and text.
        amount: how much of the text to use; the rows are cut as opened says.
        saved: file for what was counted, from which a broken-off comparison goes on.
        sources: names of the model and the text: what was counted with others is not taken up.
    """

    def __init__(
        self, opened: OpenedModel, amount: Amount, saved: Path, sources: tuple[str, ...] = ()
    ) -> None:
        self._opened = opened
        self._amount = replace(
            amount, context_size=opened.context_size, first_position=opened.first_position
        )
        self._candidates, self._sites = opened.candidates, list(opened.hooks)
        self._sums = _Sums(self._candidates, self._sites, amount.latents)
        of = fingerprint(self._candidates, self._amount, sources)
        self._stream = TextStream(opened, SavedProgress(saved, of, self._sums))

    def run(self) -> list[ComparedCoder]:
        """Measure all coders; after an interruption, go on with the rest of the text.

        Raises:
            KeyboardInterrupt: Ctrl-C, once the batch is counted and all is saved.
            ValueError: the model's activations are not as wide as a coder's, or there is no text.
        """
        self.measure()
        self._stream.go_on("spliced", "Splicing", self._amount.spliced_tokens, self._splice)
        variances = dict(zip(self._sites, self._sums.variances, strict=True))
        figures = [
            sums.figures(variances[candidate.site])
            for candidate, sums in zip(self._candidates, self._sums.figures, strict=True)
        ]
        return [
            ComparedCoder(
                candidate,
                figures[place],
                self._sums.losses[place].figures(),
                self._sums.figures[place].samples,
                predictability(self._sums.figures[place].samples),
                self._matches(place, figures),
            )
            for place, candidate in enumerate(self._candidates)
        ]

    def measure(self) -> None:
        """The first part of run: everything except the losses of the model."""
        self._stream.go_on("measured", "Measuring", self._amount.tokens, self._measure)

    def _matches(self, place: int, figures: list[CoderFigures]) -> dict[str, Matches]:
        sampled = self._sums.figures[place].samples.latents
        return {
            self._candidates[other].name: joint.matches(
                figures[place].rates[sampled], figures[other].rates, figures[place].tokens
            )
            for (one, other), joint in self._sums.joint.items()
            if one == place
        }

    def _measure(self, text: TextBatch) -> None:
        batch = self._opened.read(text)
        weights = document_weights(text.documents)
        batches: dict[Site, TokenBatch] = {}
        for site, variance in zip(self._sites, self._sums.variances, strict=True):
            batches[site] = batch.tokens(self._opened.hooks[site], weights)
            variance.add(batches[site])
        fired = [
            figures.add(batches[candidate.site])
            for candidate, figures in zip(self._candidates, self._sums.figures, strict=True)
        ]
        for (one, other), joint in self._sums.joint.items():
            joint.add(fired[one][:, self._sums.figures[one].samples.latents], fired[other])

    def _splice(self, text: TextBatch) -> None:
        weights = document_weights(text.documents)
        everywhere = text.positions(0)
        splices = {
            site: Splice(self._opened.model, *self._opened.hooks[site]) for site in self._sites
        }
        untouched = splices[self._sites[0]]
        clean = untouched.outputs(text.tokens, everywhere, lambda _, target: target)
        for site, variance in zip(self._sites, self._sums.variances, strict=True):
            batch = SplicedBatch(
                splices[site], text, clean, self._amount.first_position, variance.mean()
            )
            for candidate, losses in zip(self._candidates, self._sums.losses, strict=True):
                if candidate.site == site:
                    rows = batch.losses(_output_of(candidate))
                    losses.add(rows, weights)


def _output_of(candidate: Candidate) -> Callable[[Tensor, Tensor], Tensor]:
    coder: Any = candidate.coder
    return lambda source, _: coder(source.to(coder.device, torch.float32))
