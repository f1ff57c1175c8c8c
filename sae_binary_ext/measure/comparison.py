"""Measures coders of either host and any format on the same tokens of the same model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_binary_ext.measure import documents
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import Estimate, TextBatch, WeightedSums
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.in_model import reads_sequences
from sae_binary_ext.measure.matching import JointCounts, Matches
from sae_binary_ext.measure.quantised_values import value_bits
from sae_binary_ext.measure.reading import OpenedModel, RunningCoders, SavedProgress, fingerprint
from sae_binary_ext.measure.samples import LatentSamples, Predictability, predictability
from sae_binary_ext.saelens.splice import Splice
from sae_binary_ext.settings import Amount

# Positions whose logits are compared at once: 100 MB for a vocabulary of 49,152.
POSITIONS_AT_ONCE = 512
# Tokens, from the first on, on which the values of stock coders are quantised.
VALUE_TOKENS = 10_000
PREDICTIONS, CLEAN, ZEROED, MEANED, SPLICED, POSITIONS, DIVERGENCE = range(7)
Replacement = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SplicedFigures:
    """Losses in nats per prediction, at the positions where the activation is replaced.

    Attributes:
        predictions: number of predictions; a row has one fewer than it has positions.
        clean, zero_ablated, mean_ablated, spliced: cross-entropy of the model if the activation is
            unchanged, or replaced by zeros, by its mean, or by the coder's output.
        divergence: KL divergence of the spliced model's predictions from the clean model's.
        recovered_of_zero, recovered_of_mean: share of the ablation's damage that splicing avoids.
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
    """Running sums for SplicedFigures. It is a module so that its state_dict can be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = WeightedSums(7)
        # `add` takes the rows [rows, 7] of SplicedBatch.losses, with weights of document_weights.
        self.add = self.sums.add

    def figures(self) -> SplicedFigures:
        """The figures so far."""
        sums = self.sums.sums
        means = sums / sums[:, :1]
        gaps = means[:, [ZEROED, MEANED]] - means[:, [CLEAN]]
        recovered = (means[:, [ZEROED, MEANED]] - means[:, [SPLICED]]) / gaps
        losses = means[:, [CLEAN, ZEROED, MEANED, SPLICED]].T
        divergence = sums[:, DIVERGENCE] / sums[:, POSITIONS]
        # Estimates are in the order of the fields of SplicedFigures.
        estimates = map(documents.estimate_of, (*losses, divergence, *recovered.T))
        return SplicedFigures(int(sums[0, PREDICTIONS]), *estimates)


class SplicedBatch:
    """A batch of text, run through a model whose activation at one site is replaced.

    `clean` is what Splice.outputs gives for the unchanged model. `mean` [width] is the mean
    activation at the site.
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
        shared = torch.ones_like(clean_losses), clean_losses, zeroed, meaned
        self._shared = [row_sums(losses, self._predicts) for losses in shared]

    def losses(self, replacement: Replacement) -> Tensor:
        """Sums over each row's predictions, float64 [rows, 7]; `replacement` is that of Splice."""
        logits, spliced = self._outputs(replacement)
        divergence = row_sums(divergences(self._clean_logits, logits), self._where)
        own = [row_sums(spliced, self._predicts), self._where.sum(1).double(), divergence]
        return torch.stack([*self._shared, *own], dim=1)

    def _outputs(self, replacement: Replacement) -> tuple[Tensor, Tensor]:
        return self._splice.outputs(self._tokens, self._where, replacement)


def row_sums(values: Tensor, where: Tensor) -> Tensor:
    """Sums of values over the true positions of each row; both [rows, n]. Returns float64."""
    return torch.where(where, values.to("cpu", torch.float64), 0.0).sum(1)


def divergences(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) of the next token, in nats [rows, context], from logits."""
    found: list[Tensor] = []
    pairs = (logits.flatten(0, 1).split(POSITIONS_AT_ONCE) for logits in (clean, other))
    for parts in zip(*pairs, strict=True):
        one, two = (logits.float().log_softmax(-1) for logits in parts)
        found.append((one.exp() * (one - two)).sum(-1))
    return torch.cat(found).view(clean.shape[:2])


@dataclass(frozen=True)
class ComparedCoder:
    """A coder, its figures, and the losses of the model if the coder's output is spliced in.

    value_bits is what its quantised values take, in bits a token, as in quantised_values. samples
    has text in which some of its latents fire. predictability says how well tokens predict
    these latents. matches has the latents of each other coder, by name, that fire most like them.
    """

    candidate: Candidate
    figures: CoderFigures
    losses: SplicedFigures
    value_bits: float
    samples: LatentSamples
    predictability: Predictability
    matches: dict[str, Matches]


class _Sums(RunningCoders):
    """All counts of a comparison in one module, so that one state_dict saves them."""

    value_bits: Tensor

    def __init__(self, opened: OpenedModel, samples: int) -> None:
        super().__init__(opened, samples)
        candidates = opened.candidates
        self.losses = [RunningLosses() for _ in candidates]
        # Keys are two places in the list of coders. Counts are for the sampled latents of the first
        # coder and all latents of the second.
        self.joint: dict[tuple[int, int], JointCounts] = {}
        for one, other in permutations(range(len(candidates)), 2):
            if candidates[one].site == candidates[other].site:
                sampled = len(self.running[one].samples.latents)
                self.joint[one, other] = JointCounts(sampled, candidates[other].coder.cfg.d_sae)
        # Bits a token of each coder's quantised values; codes of 0 and 1 have none.
        self.register_buffer("value_bits", torch.zeros(len(candidates), dtype=torch.float64))
        self.all_losses = nn.ModuleList(self.losses)
        self.all_joint = nn.ModuleList(self.joint.values())


class Comparison:
    """Measures coders together, with one forward pass of the model for all of them.

    Args:
        opened: the coders (autoencoders or transcoders) with their model and text.
        amount: how much of the text to use; `opened` says how rows are cut.
        saved: file for the counts, from which an interrupted comparison continues.
        sources: names of the model and the text. Counts of other sources are not used.
    """

    def __init__(
        self, opened: OpenedModel, amount: Amount, saved: Path, sources: tuple[str, ...] = ()
    ) -> None:
        first = opened.first_position
        amount = replace(amount, context_size=opened.context_size, first_position=first)
        self._opened, self._amount = opened, amount
        self._sums = _Sums(opened, amount.latents)
        of = fingerprint(opened.candidates, amount, sources)
        self._progress = SavedProgress(opened, saved, of, self._sums)

    def run(self) -> list[ComparedCoder]:
        """Measure all coders; after an interruption, continue with the rest of the text.

        Ctrl-C raises KeyboardInterrupt once the batch is saved. ValueError if there is no text, or
        if a coder does not have the model's widths.
        """
        self.measure()
        self._progress.go_on("spliced", "Splicing", self._amount.spliced_tokens, self._splice)
        compared: list[ComparedCoder] = []
        figures = self._sums.figures()
        if any(each.stores_values for each in figures):
            self._progress.once("valued", self._count_value_bits)
        value_bits = self._sums.value_bits.tolist()
        for place, candidate in enumerate(self._opened.candidates):
            losses, samples = self._sums.losses[place].figures(), self._sums.running[place].samples
            measured = figures[place], losses, value_bits[place]
            own = *measured, samples, predictability(samples), {}
            compared.append(ComparedCoder(candidate, *own))
        for (one, other), joint in self._sums.joint.items():
            rates = figures[one].rates[compared[one].samples.latents]
            matches = joint.matches(rates, figures[other].rates, figures[one].tokens)
            compared[one].matches[compared[other].candidate.name] = matches
        return compared

    def measure(self) -> None:
        """Do the first part of `run`: measure everything except the losses of the model."""
        self._progress.go_on("measured", "Measuring", self._amount.tokens, self._measure)

    def _count_value_bits(self) -> None:
        """Count the bits of values on the first tokens, which are read again: none were kept."""
        opened, running = self._opened, self._sums.running
        tokens = min(VALUE_TOKENS, self._amount.tokens)
        batches = [opened.read(text) for text, _ in opened.batches(tokens)]
        where = torch.cat([batch.where for batch in batches])
        for place, candidate in enumerate(opened.candidates):
            if not running[place].stores_values:
                continue
            coder, (source, target) = candidate.coder, opened.hooks[candidate.site]
            rows = torch.cat([batch.found[source] for batch in batches])
            targets = torch.cat([batch.found[target] for batch in batches])[where]
            whole = reads_sequences(coder)
            inputs, of_rows = (rows, where) if whole else (rows[where], None)
            bits = value_bits(coder, inputs, targets, where=of_rows)
            self._sums.value_bits[place] = bits

    def _measure(self, text: TextBatch) -> None:
        fired = [active for _, _, active in self._sums.add(self._opened.read(text))]
        for (one, other), joint in self._sums.joint.items():
            joint.add(fired[one][:, self._sums.running[one].samples.latents], fired[other])

    def _splice(self, text: TextBatch) -> None:
        weights, first = documents.document_weights(text.documents), self._amount.first_position
        model, hooks_of = self._opened.model, self._opened.hooks
        splices = {site: Splice(model, *hooks) for site, hooks in hooks_of.items()}
        untouched = next(iter(splices.values()))
        clean = untouched.outputs(text.tokens, text.positions(0), lambda _, target: target)
        for site, splice in splices.items():
            batch = SplicedBatch(splice, text, clean, first, self._sums.variances[site].mean())
            for candidate, losses in zip(self._opened.candidates, self._sums.losses, strict=True):
                if candidate.site == site:
                    losses.add(batch.losses(_output_of(candidate)), weights)


def _output_of(candidate: Candidate) -> Callable[[Tensor, Tensor], Tensor]:
    coder: Any = candidate.coder
    return lambda source, _: coder(source.to(coder.device, torch.float32))
