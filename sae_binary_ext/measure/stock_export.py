"""Writes binary coders as coders of SAELens' own architectures, and measures what that changes."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints import saelens, sources, stock_forms
from sae_binary_ext.checkpoints.load import coders_to_convert, own_coder, write_coder
from sae_binary_ext.checkpoints.portable import PortableCoder
from sae_binary_ext.measure.candidates import candidate_of
from sae_binary_ext.measure.in_model import apply_coder, heads_side_by_side
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import open_in_model
from sae_binary_ext.measure.text import Halves, read_halves
from sae_binary_ext.measure.thresholds import Fitted, fit_thresholds
from sae_binary_ext.settings import ReadingConfig

CODES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Exported:
    """How near a stock coder comes to its own form, on tokens that nothing was fitted to.

    Attributes:
        folder: the new coder's folder.
        architecture: SAELens' name of the architecture.
        thresholds: which thresholds were fitted, in words, or None.
        tokens: number of tokens; 0 if codes and outputs are the same by construction.
        firings: number of ones among the own form's codes.
        differing: number of codes that are active in one form only.
        l0, fvu: of the own form and of the stock form.
    """

    folder: Path
    architecture: str
    thresholds: str | None = None
    tokens: int = 0
    firings: int = 0
    differing: int = 0
    l0: tuple[float, float] = (math.nan, math.nan)
    fvu: tuple[float, float] = (math.nan, math.nan)

    def figures(self) -> dict[str, Any]:
        """The figures for the stock coder's metadata."""
        figures = asdict(self)
        del figures["folder"], figures["architecture"]
        return figures

    def __str__(self) -> str:
        return f"{self.folder}: {self.architecture}, {stock_forms.in_words(self.figures())}"


def export_stock(
    source: str | Path,
    out: str | Path,
    config: ReadingConfig,
    architecture: str | None = None,
    hookpoint: str | None = None,
) -> list[Exported]:
    """Write binary coders as coders that SAELens loads without this package.

    A threshold coder becomes a gated coder with the same codes, which takes no text. For all other
    coders and architectures, text is read: thresholds are fitted to one half of the documents, and
    the figures are measured on the other half.

    Args:
        source, out, hookpoint: as in checkpoints.convert.
        config: the text to read. All coders must be of one model.
        architecture: gated, jumprelu or topk. None takes the one that comes nearest.

    Raises:
        CheckpointError: a coder cannot be read, or no stock architecture stores it.
        ValueError: the model or its hook is not known, or the text is too short.
    """
    coders = coders_to_convert(source, out, "saelens", hookpoint)
    plans = [
        _Plan(target, folder, own_coder(coder), architecture)
        for target, (folder, coder) in coders.items()
    ]
    exact = [plan for plan in plans if plan.form.keeps_codes(plan.coder)]
    exported = [_export(plan) for plan in exact]
    for plan, own, halves in _read([plan for plan in plans if plan not in exact], config):
        exported.append(_export_measured(plan, own, halves))
    return exported


class _Plan:
    """One coder, its folder, and the folder and the architecture of its stock form."""

    def __init__(
        self, target: Path, folder: Path, coder: PortableCoder, architecture: str | None
    ) -> None:
        self.target, self.folder, self.coder = target, folder, coder
        self.architecture = architecture or stock_forms.nearest(coder)
        stock_forms.check_form(coder, self.architecture)
        self.form = stock_forms.FORMS[self.architecture]


def _export(plan: _Plan) -> Exported:
    made = stock_forms.to_stock(plan.coder, plan.architecture)
    write_coder(made, plan.target, "saelens", [plan.folder / sources.SPARSITY_FILE])
    return Exported(plan.target, plan.architecture)


def _read(plans: list[_Plan], config: ReadingConfig) -> Iterator[tuple[_Plan, Any, Halves]]:
    """Each coder in its own form, with the halves of the text at its hooks, read once for all."""
    if not plans:
        return
    candidates = [
        candidate_of(saelens.to_coder(plan.coder).to(config.device), str(plan.folder))
        for plan in plans
    ]
    opened = open_in_model(candidates, config, config.output)
    found = read_halves(opened, config, opened.hooks.values())
    for plan, candidate in zip(plans, opened.candidates, strict=True):
        yield plan, candidate.coder, found[opened.hooks[candidate.site]]


def _export_measured(plan: _Plan, own: Any, halves: Halves) -> Exported:
    coder, thresholds = plan.coder, None
    if plan.form.selection != coder.shape.rule.selection:
        fitted = fit_thresholds(own, halves.to_fit(own.device))
        coder, thresholds = _with_thresholds(coder, fitted), fitted.kind
    scale = stock_forms.SCALE / _mean_margin(own, halves.fitted[0][0])
    made = stock_forms.to_stock(coder, plan.architecture, 2.0 ** round(math.log2(scale)))
    inputs = torch.cat([batch.inputs for batch in halves.measured])
    targets = torch.cat([batch.targets for batch in halves.measured])
    before, after = (measure(each, inputs, targets) for each in (own, made.to(own.device)))
    both = zip(*(apply_coder(each, inputs, CODES_AT_ONCE) for each in (own, made)), strict=True)
    differing = sum(int(((mine[1] != 0) != (its[1] != 0)).sum()) for mine, its in both)
    exported = Exported(
        plan.target, plan.architecture, thresholds, len(inputs), round(before.l0 * len(inputs)),
        differing, (before.l0, after.l0), (before.fvu, after.fvu),
    )  # fmt: skip
    told = {"selection": plan.coder.shape.rule.selection, **exported.figures()}
    made.cfg.metadata[stock_forms.CONVERTED_KEY] |= told
    write_coder(made, plan.target, "saelens", [])
    return exported


def _with_thresholds(coder: PortableCoder, fitted: Fitted) -> PortableCoder:
    """The coder with thresholds instead of its selection, and without figures of its old codes."""
    tensors = {name: tensor.cpu() for name, tensor in coder.tensors.items()}
    raised = tensors["encoder_bias"].float() - fitted.raised.cpu()
    changed = {
        "encoder_bias": raised,
        "decoder_weight": fitted.weight.cpu(),
        "decoder_bias": fitted.bias.cpu(),
    }
    tensors |= {name: tensor.to(coder.dtype) for name, tensor in changed.items()}
    told = {**coder.settings.get("saelens", {})}
    for name in ("l0", "num_dead_features"):
        told.pop(name, None)
    shape = replace(coder.shape, rule=replace(coder.shape.rule, selection="threshold"))
    settings = coder.settings | {"saelens": told}
    return PortableCoder(shape, tensors, coder.place, None, settings)


@torch.no_grad()
def _mean_margin(coder: Any, inputs: Tensor) -> float:
    """The mean margin of the latents that fire on inputs [tokens, d_in]; 1 if none fires."""
    with heads_side_by_side(coder):
        codes, pre = coder.codes_and_pre_activations(inputs.to(coder.device), noise=False)
    margins = (pre - coder.log_threshold.exp())[codes != 0]
    return margins.mean().item() if len(margins) else 1.0
