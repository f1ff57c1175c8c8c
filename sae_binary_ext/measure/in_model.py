"""Coders in a model: their hooks, and what they read there and put in its place.

Temporal coders attend to earlier tokens, so they take whole rows. Their output, and that of skip
transcoders, does not come from codes alone. Coders of attn.hook_z take heads side by side here.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import torch
from sae_lens import SAE, Transcoder
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from tqdm import tqdm

from sae_binary_ext.saelens.splice import HookedModel, HookView, Splice, SplicedLosses, resolve_hook
from sae_binary_ext.saelens.transcoder import SkipConnection

ROWS_PER_FORWARD = 8
# Coders with one of these have the output decode(encode(x)).
PLAIN_FORWARDS = (SAE.forward, Transcoder.forward, SkipConnection.forward)
# The layer in the name of a hook: blocks.9.hook_resid_pre, model.layers.9, transformer.h.9.mlp
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)(?=\.|$)")
EVERY_LAYER = 3


def reads_sequences(coder: Any) -> bool:
    """Whether a token's code depends on the tokens before it."""
    return isinstance(coder, TemporalSAE)


def decodes_codes_alone(coder: Any) -> bool:
    """Whether the coder's output comes from its codes alone."""
    return type(coder).forward in PLAIN_FORWARDS


@contextmanager
def heads_side_by_side(coder: Any) -> Generator[None]:
    """Let a coder of attn.hook_z take and give [..., heads * d_head]."""
    reshapes = getattr(coder, "hook_z_reshaping_mode", False)
    if reshapes:
        coder.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshapes:
            coder.turn_on_forward_pass_hook_z_reshaping()


@torch.no_grad()
def codes_of(coder: Any, rows: Tensor, where: Tensor) -> Tensor:
    """Codes [tokens, latents] of the tokens that `where` marks in rows [rows, context, d_in]."""
    with heads_side_by_side(coder):
        if reads_sequences(coder):
            return coder.encode(_for(coder, rows))[where.to(coder.device)]
        return coder.encode(_for(coder, rows[where]))


@torch.no_grad()
def apply_coder(
    coder: Any, inputs: Tensor, codes_at_once: int, where: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Apply a coder to tokens [tokens, d_in], about codes_at_once codes at a time.

    A coder that reads sequences takes rows [rows, context, d_in], with the tokens that count in
    `where`, bool [rows, context]. ValueError if it gets single tokens. Yields numbers of tokens,
    int64, their codes [tokens, latents], outputs [tokens, d_out], and the seconds that encode took.
    """
    if reads_sequences(coder) and where is None:
        raise ValueError(
            f"{type(coder).__name__} reads whole sequences, and got single tokens. Measure it "
            "with sae-binary compare, which keeps rows together."
        )
    tokens_each = 1 if where is None else where.shape[1]
    size, first = max(codes_at_once // (coder.cfg.d_sae * tokens_each), 1), 0
    for part in torch.arange(len(inputs)).split(size):
        own = _for(coder, inputs[part])
        with heads_side_by_side(coder):
            started = _now(coder.device)
            codes = coder.encode(own)
            seconds = _now(coder.device) - started
            output = coder.decode(codes) if decodes_codes_alone(coder) else coder(own)
        if where is not None:
            there = where[part].to(codes.device)
            codes, output = codes[there], output[there]
        yield first + torch.arange(len(codes)), codes, output, seconds
        first += len(codes)


@torch.no_grad()
def output_of_changed(coder: Any, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Output [rows, context, d_out] for rows [rows, context, d_in] if `change` maps their codes."""
    rows = _for(coder, rows)
    with heads_side_by_side(coder):
        changed = change(coder.encode(rows))
        if isinstance(coder, SkipConnection):
            return coder.decode_with_input(changed, rows)
        output = coder.decode(changed)
        if decodes_codes_alone(coder):
            return output
        # The part of the output that does not come from codes stays as it was.
        return output + coder(rows) - coder.decode(coder.encode(rows))


def _for(coder: Any, inputs: Tensor) -> Tensor:
    return inputs.to(coder.device, torch.float32)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class SplicedModel:
    """Cross-entropy of a hooked model if a coder's output replaces an activation.

    Args:
        model: a TransformerBridge, HookedTransformer or SAELens' HookedProxyLM.
        rows: int64 [rows, context], token ids.
        hook_name: the activation that coders read. ValueError if the model has no such hook.
        hook_name_out: the activation they replace; None for autoencoders, which replace hook_name.
        first_position: positions before it, such as an attention sink, are not replaced.
    """

    def __init__(
        self,
        model: HookedModel,
        rows: Tensor,
        hook_name: str,
        hook_name_out: str | None = None,
        first_position: int = 0,
    ) -> None:
        source = resolve_hook(model, "hook_name", hook_name)
        target = resolve_hook(model, "hook_name_out", hook_name_out or hook_name)
        self._splice = Splice(model, source, target)
        self._rows, self._first_position = rows, first_position
        self.clean = self._mean_loss(self._splice.clean, "Clean model")
        self.ablated = self._mean_loss(self._splice.ablated, "Zero ablation")

    def losses(self, coder: SAE[Any]) -> SplicedLosses:
        """Losses with the coder's output in place, as means over all tokens."""
        loss = partial(self._splice.replaced, replacement=lambda x, _: coder(x))
        with heads_side_by_side(coder):
            spliced = self._mean_loss(loss, "Splicing")
        return SplicedLosses(self.clean, self.ablated, spliced)

    def _mean_loss(self, loss: Callable[[Tensor, Tensor], Tensor], description: str) -> float:
        total = 0.0
        for rows in tqdm(self._rows.split(ROWS_PER_FORWARD), description, leave=False):
            where = torch.ones_like(rows, dtype=torch.bool)
            where[:, : self._first_position] = False
            total += loss(rows, where).mean().item() * len(rows)
        return total / len(self._rows)


def read_pairs(
    model: HookedModel, rows: Tensor, hook_name: str, hook_name_out: str, first_position: int = 0
) -> tuple[Tensor, Tensor]:
    """Activations of the same tokens at two hooks: inputs and targets of a transcoder.

    Arguments and errors are those of SplicedModel. Positions before first_position are left out.
    Returns [tokens, d_in] and [tokens, d_out], row by row.
    """
    source = resolve_hook(model, "hook_name", hook_name)
    target = resolve_hook(model, "hook_name_out", hook_name_out)
    batches = tqdm(rows.split(ROWS_PER_FORWARD), "Reading activations", leave=False)
    found = [read_hooks(model, (source, target), batch) for batch in batches]
    inputs = torch.cat([each[source][:, first_position:].flatten(0, 1) for each in found])
    return inputs, torch.cat([each[target][:, first_position:].flatten(0, 1) for each in found])


@torch.no_grad()
def read_hooks(model: HookedModel, hook_names: Iterable[str], tokens: Tensor) -> dict[str, Tensor]:
    """Activations [rows, context, width] at hooks of resolve_hook, with heads side by side.

    The forward pass stops after the last layer needed. ValueError if it does not reach a hook.
    """
    views = {name: HookView.of(name) for name in hook_names}
    found: dict[str, Tensor] = {}
    points = cast(Mapping[str, nn.Module], model.hook_dict)

    def keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        found[name] = views[name].read(model, output)

    layers = [extract_stop_at_layer_from_tlens_hook_name(view.hook_name) for view in views.values()]
    known = [layer for layer in layers if layer is not None]
    stop = {"stop_at_layer": max(known)} if len(known) == len(layers) else {}
    handles = [
        points[view.hook_name].register_forward_hook(partial(keep, name))
        for name, view in views.items()
    ]
    try:
        model(tokens, **stop)
    finally:
        for handle in handles:
            handle.remove()
    if missing := views.keys() - found.keys():
        raise ValueError(f"{sorted(missing)}: the model does not pass through these hooks.")
    return found


def layer_of(hook: str) -> int:
    """The layer of a hook; ValueError if its name has no number of a layer."""
    if (found := BLOCK.search(hook)) is None:
        raise ValueError(f"hook={hook!r}: belongs to no layer. Give a coder of a layer.")
    return int(found[1])


def layer_hooks(
    model: HookedModel, hooks: tuple[str, str], layers: Iterable[int]
) -> dict[int, tuple[str, str]]:
    """The model's names, by layer, of a coder's two hooks at `layers` and at its own layer.

    No layers means every third. ValueError if the coder has no layer or two, or the model lacks
    one of them.
    """
    home, target = map(layer_of, hooks)
    if home != target:
        raise ValueError(
            f"hooks={hooks}: reads one layer and predicts another. Give a coder of one layer."
        )

    def resolved(hook: str, layer: int) -> str:
        name = BLOCK.sub(lambda found: found[0].replace(found[1], str(layer)), hook, count=1)
        return resolve_hook(model, "layers", name)

    names = cast(Mapping[str, Any], model.hook_dict)
    known: dict[int, tuple[str, str]] = {}
    for layer in sorted({int(found[1]) for name in names if (found := BLOCK.search(name))}):
        with suppress(ValueError):
            known[layer] = resolved(hooks[0], layer), resolved(hooks[1], layer)
    wanted = set(layers) or {number for number in known if number % EVERY_LAYER == 0}
    if missing := sorted(wanted - known.keys()):
        raise ValueError(
            f"layers={missing}: the model has no such hook there. It has {sorted(known)}."
        )
    return {number: known[number] for number in sorted(wanted | {home})}
