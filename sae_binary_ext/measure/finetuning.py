"""Fine-tunes coders of several sites together, on what the model predicts if all are spliced in.

The code of Quirke et al. (Binary Sparse Coding for Interpretability, arXiv 2509.25596) minimises
the Kullback-Leibler divergence of the spliced model's next-token distribution from the clean
model's.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sae_binary_ext.measure import documents as texts
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.comparison import divergences, row_sums
from sae_binary_ext.measure.documents import TextBatch, WeightedSums
from sae_binary_ext.measure.held_out_rows import joined
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.reading import (
    SECONDS_BETWEEN_SAVES,
    OpenedModel,
    ReadBatch,
    RunningCoders,
    interrupts_noted,
)
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import Replacement, run_replaced

logger = logging.getLogger(__name__)
PREDICTIONS, CLEAN, SPLICED, POSITIONS, DIVERGENCE = range(5)
# The learning rate rises from 0 over this share of the steps, and then falls to 0.
WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class JointLosses:
    """Losses of one batch, in nats: clean, spliced [rows, context - 1], divergence [rows, context].

    `counts` and `predicts` are bool, and mark the positions of divergences and of cross-entropies
    that count.
    """

    clean: Tensor
    spliced: Tensor
    divergence: Tensor
    counts: Tensor
    predicts: Tensor

    def mean(self, name: str) -> Tensor:
        """Mean of the divergence or of a cross-entropy over the positions that count."""
        values: Tensor = getattr(self, name)
        where = self.counts if name == "divergence" else self.predicts
        return values[where.to(values.device)].mean()

    def sums(self) -> Tensor:
        """float64 [rows, 5]: sums of each row, in the order of PREDICTIONS, CLEAN, …"""
        predicts, counts = self.predicts, self.counts
        ones = torch.ones_like(self.clean), torch.ones_like(self.divergence)
        return torch.stack(
            [
                row_sums(ones[0], predicts),
                row_sums(self.clean, predicts),
                row_sums(self.spliced, predicts),
                row_sums(ones[1], counts),
                row_sums(self.divergence, counts),
            ],
            dim=1,
        )


class JointSplice:
    """A model with all its opened coders spliced in at once.

    Tokens of outlying norm at any site keep their activations. ValueError if two coders output the
    same activation, or one reads what another outputs.
    """

    def __init__(self, opened: OpenedModel) -> None:
        self.opened = opened
        self.pairs = [(each, opened.hooks[each.site]) for each in opened.candidates]
        for number, (one, own) in enumerate(self.pairs):
            for other, hooks in self.pairs[:number]:
                if own[1] in hooks or hooks[1] in own:
                    raise ValueError(
                        f"{other.name} and {one.name}: both are of {own[1]}, and only one can take "
                        "its place. Give one coder for each hook."
                    )

    def losses(self, text: TextBatch) -> tuple[JointLosses, ReadBatch]:
        """Losses of the clean and the spliced model, and the clean model's activations.

        The losses of the spliced model have gradients. ValueError if a coder lacks the model's
        widths.
        """
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            kept = {hooks: _kept(found, hooks) for _, hooks in self.pairs}
            clean_logits, clean = run_replaced(self.opened.model, kept, text.tokens, {})
        for candidate, (source, target) in self.pairs:
            candidate.check_widths(found[source], found[target])
        counts = text.positions(self.opened.first_position)
        where = self.opened.outliers.within(found, counts)
        spliced = {hooks: _spliced(each, where) for each, hooks in self.pairs}
        logits, losses = run_replaced(self.opened.model, spliced, text.tokens, {})
        predicts = counts[:, :-1] & text.positions(0)[:, 1:]
        divergence = divergences(clean_logits, logits)
        batch = ReadBatch(text, where, found)
        return JointLosses(clean, losses, divergence, counts, predicts), batch


def _kept(found: dict[str, Tensor], hooks: tuple[str, str]) -> Replacement:
    def keep(source: Tensor, target: Tensor) -> Tensor:
        found.update(zip(hooks, (source, target), strict=True))
        return target

    return keep


def _spliced(candidate: Candidate, where: Tensor) -> Replacement:
    coder: Any = candidate.coder

    def put(source: Tensor, target: Tensor) -> Tensor:
        output = coder(source.to(coder.device, coder.dtype)).to(target)
        return torch.where(where[..., None].to(target.device), output, target)

    return put


class RunningJoint(RunningCoders):
    """Sums over held-out rows: the losses with all coders spliced in, and figures of each coder."""

    def __init__(self, opened: OpenedModel) -> None:
        super().__init__(opened)
        self.losses = WeightedSums(5)

    def measured(
        self, splice: JointSplice, rows: list[TextBatch], description: str
    ) -> "RunningJoint":
        """Itself, with all rows added."""
        batches = list(joined(rows, ROWS_PER_FORWARD))
        with torch.no_grad():
            for text in tqdm(batches, description, unit="batches"):
                losses, read = splice.losses(text)
                self.losses.add(losses.sums(), texts.document_weights(text.documents))
                list(self.add(read))
        return self

    def means(self) -> Tensor:
        """float64 [1 + REPLICATES, 4]: clean, spliced, rise, divergence."""
        sums = self.losses.sums
        clean, spliced = (sums[:, name] / sums[:, PREDICTIONS] for name in (CLEAN, SPLICED))
        divergence = sums[:, DIVERGENCE] / sums[:, POSITIONS]
        return torch.stack([clean, spliced, spliced - clean, divergence], dim=1)

    @property
    def predictions(self) -> int:
        """Number of next tokens whose cross-entropy counts."""
        return int(self.losses.sums[0, PREDICTIONS])


@dataclass(frozen=True)
class Step:
    """A training step: tokens trained on so far, and the batch's losses in nats."""

    tokens: int
    divergence: float
    spliced: float
    clean: float


class Finetuning:
    """Trains the coders of a JointSplice on rows, and keeps its state in a file.

    Adam's steps are relative: a step moves a weight by about lr times the root mean square of its
    tensor, so that one learning rate fits coders of activations of any scale.

    Args:
        splice: the coders, which are changed in place. Their model keeps its weights.
        loss: "divergence" (KL) or "spliced" (cross-entropy).
        lr: the largest learning rate.
        parameters: names of the parameters that train; all of them if empty.
        learners: the coders' surrogate_latents, by name of coder; others take their default.
        saved: file of the state, and `of`, the fingerprint of the run that it belongs to.

    ValueError if no coder has a parameter of a name, or the file is of another run.
    """

    def __init__(
        self,
        splice: JointSplice,
        loss: str,
        lr: float,
        parameters: Iterable[str],
        learners: Mapping[str, str | None],
        saved: Path,
        of: str,
    ) -> None:
        self._splice, self._loss, self._saved, self._of = splice, loss, saved, of
        self.steps: list[Step] = []
        self.before: dict[str, Tensor] | None = None
        splice.opened.model.requires_grad_(False)
        self._asked = set(parameters)
        self._trained = _trained(splice.opened.candidates, self._asked)
        for candidate in splice.opened.candidates:
            coder = candidate.coder
            if isinstance(coder, BinaryCoder):
                told = learners.get(candidate.name) or coder.rule.kind.default_learners
                coder.rule = replace(coder.rule, surrogate_latents=told)
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": lr * _size(candidate.coder, name)}
            for candidate in splice.opened.candidates
            for name, parameter in self._trained[candidate.name].items()
        ]
        self._optimizer = torch.optim.Adam(groups)
        self._peaks: list[float] = [group["lr"] for group in groups]
        self._resume()

    def run(self, batches: list[TextBatch]) -> None:
        """Train on the batches that are not done yet.

        Ctrl-C raises KeyboardInterrupt once the state is saved. ValueError if no gradient reaches a
        coder or a parameter that was asked for, or the loss is not finite.
        """
        saved_at = time.monotonic()
        with tqdm(total=len(batches), desc="Fine-tuning", unit="steps") as progress:
            progress.update(len(self.steps))
            with interrupts_noted() as interrupted:
                for number in range(len(self.steps), len(batches)):
                    self._step(batches[number], self._share(number, len(batches)))
                    last = self.steps[-1]
                    progress.update()
                    progress.set_postfix(KL=f"{last.divergence:.4f}", CE=f"{last.spliced:.4f}")
                    done = interrupted()
                    if done or time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                        self.save()
                        saved_at = time.monotonic()
                    if done:
                        raise KeyboardInterrupt
        self.save()

    def save(self) -> None:
        """Save the state, all at once."""
        coders = [each.coder.state_dict() for each in self._splice.opened.candidates]
        state = {"of": self._of, "coders": coders, "optimizer": self._optimizer.state_dict()}
        steps = [tuple(vars(step).values()) for step in self.steps]
        unfinished = self._saved.with_suffix(".unfinished")
        torch.save(state | {"steps": steps, "before": self.before}, unfinished)
        unfinished.replace(self._saved)

    def _resume(self) -> None:
        if not self._saved.is_file():
            return
        device = self._splice.opened.candidates[0].coder.device
        state = torch.load(self._saved, map_location=device, weights_only=True)
        if state["of"] != self._of:
            raise ValueError(
                f"{self._saved}: is of a run with other coders or settings. Choose another "
                "--output, or delete the file."
            )
        for candidate, own in zip(self._splice.opened.candidates, state["coders"], strict=True):
            candidate.coder.load_state_dict(own)
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self.before = [Step(*step) for step in state["steps"]], state["before"]
        logger.info("Going on after %d steps, from %s", len(self.steps), self._saved)

    def _share(self, number: int, steps: int) -> float:
        """The learning rate of a step, as a share of the largest one."""
        warm = max(round(WARM_UP_SHARE * steps), 1)
        return min((number + 1) / warm, (steps - number) / max(steps - warm, 1))

    def _step(self, text: TextBatch, share: float) -> None:
        losses, _ = self._splice.losses(text)
        loss = losses.mean(self._loss)
        if not loss.isfinite():
            raise ValueError(
                f"lr: the loss is {loss.item()} after {len(self.steps)} steps. Give a lower "
                f"learning rate, and delete {self._saved}."
            )
        if not loss.requires_grad:
            raise ValueError(
                "coders: no gradient reaches them, because the model passes none on. Load it "
                "without quantisation."
            )
        self._optimizer.zero_grad()
        loss.backward()
        if not self.steps:
            self._check_gradients()
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = share * peak
        self._optimizer.step()
        tokens = int(losses.counts.sum()) + (self.steps[-1].tokens if self.steps else 0)
        figures = (losses.mean(name).item() for name in ("divergence", "spliced", "clean"))
        self.steps.append(Step(tokens, *figures))

    def _check_gradients(self) -> None:
        """Raise ValueError if a coder, or a parameter that was asked for, has no gradient."""
        for name, parameters in self._trained.items():
            idle = {key for key, each in parameters.items() if each.grad is None}
            if parameters and (idle == parameters.keys() or idle & self._asked):
                raise ValueError(
                    f"{name}: no gradient reaches {sorted(idle)}. Leave the coder out, or train "
                    "other parameters of it (--parameters)."
                )
            if idle:
                logger.warning("%s: no gradient reaches %s: not trained.", name, sorted(idle))


def _trained(candidates: list[Candidate], asked: set[str]) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that train, by name, of each coder. All others get no gradient."""
    known = {name for each in candidates for name, _ in each.coder.named_parameters()}
    if unknown := sorted(asked - known):
        raise ValueError(f"parameters={unknown}: the coders have {sorted(known)}. Choose of these.")
    found: dict[str, dict[str, nn.Parameter]] = {}
    for candidate in candidates:
        found[candidate.name] = {}
        for name, parameter in candidate.coder.named_parameters():
            trains = not asked or name in asked
            parameter.requires_grad_(trains)
            if trains:
                found[candidate.name][name] = parameter
    return found


def _size(coder: Any, name: str) -> float:
    """The size of a parameter's values: their root mean square, and 1 for logarithms.

    A bias or a skip connection may be all zeros, so the encoder's or decoder's size also counts.
    """
    if name == "log_threshold":
        return 1.0
    sizes = {
        key: each.detach().float().square().mean().sqrt().item()
        for key, each in coder.named_parameters()
    }
    return max(sizes[name], sizes.get("W_enc" if "enc" in name else "W_dec", 0.0)) or 1.0
