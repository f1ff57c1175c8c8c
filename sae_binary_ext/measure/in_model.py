"""Coders measured where they belong: in the model they were trained on."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from sae_lens import SAE, Transcoder
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from tqdm import tqdm

from sae_binary_ext.saelens.hook_views import HookView
from sae_binary_ext.saelens.splice import HookedModel, Splice, SplicedLosses, resolve_hook
from sae_binary_ext.saelens.transcoder_base import SkipConnection

# Of these, the output is decode(encode(x)).
PLAIN_FORWARDS = (SAE.forward, Transcoder.forward, SkipConnection.forward)


@dataclass(frozen=True)
class Applied:
    """What a coder makes of some tokens of a batch.

    Attributes:
        tokens: int64 [tokens], their numbers in the batch.
        codes: [tokens, latents], on the coder's device.
        output: [tokens, d_out], likewise.
        seconds: that encode took.
    """

    tokens: Tensor
    codes: Tensor
    output: Tensor
    seconds: float


def reads_sequences(coder: Any) -> bool:
    """Whether a token's code depends on the tokens before it."""
    return isinstance(coder, TemporalSAE)


def decodes_codes_alone(coder: Any) -> bool:
    """Whether decode gives all of the coder's output."""
    return type(coder).forward in PLAIN_FORWARDS


@contextmanager
def heads_side_by_side(coder: Any) -> Generator[None]:
    """Within it a coder of attn.hook_z takes and gives [..., heads * d_head]."""
    if not getattr(coder, "hook_z_reshaping_mode", False):
        yield
        return
    coder.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        coder.turn_on_forward_pass_hook_z_reshaping()


@torch.no_grad()
def codes_of(coder: Any, rows: Tensor, where: Tensor) -> Tensor:
    """Codes of some tokens.

    Args:
        coder: any SAELens coder.
        rows: [rows, context, d_in], activations of whole rows.
        where: bool [rows, context], the tokens.

    Returns:
        [tokens, latents], row by row, on the coder's device.
    """
    with heads_side_by_side(coder):
        if reads_sequences(coder):
            return coder.encode(_for(coder, rows))[where.to(coder.device)]
        return coder.encode(_for(coder, rows[where]))


@torch.no_grad()
def apply_to_tokens(coder: Any, inputs: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """What a coder makes of single tokens, a part of them at a time.

    Args:
        coder: any SAELens coder that does not read sequences.
        inputs: [tokens, d_in].
        codes_at_once: size of a part, in tokens times latents.

    Raises:
        ValueError: the coder reads sequences.
    """
    if reads_sequences(coder):
        raise ValueError(
            f"{type(coder).__name__}: reads whole sequences, and got single tokens. Measure it "
            "with sae-binary compare, which keeps rows together."
        )
    size = max(codes_at_once // coder.cfg.d_sae, 1)
    for tokens in torch.arange(len(inputs)).split(size):
        codes, output, seconds = _applied(coder, inputs[tokens])
        yield Applied(tokens, codes, output, seconds)


@torch.no_grad()
def apply_to_rows(coder: Any, rows: Tensor, where: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """What a coder that reads sequences makes of some tokens of rows, a few rows at a time.

    Args:
        coder, rows, where: as codes_of takes them.
        codes_at_once: size of a part, in tokens times latents.
    """
    size = max(codes_at_once // (coder.cfg.d_sae * rows.shape[1]), 1)
    first = 0
    for part, there in zip(rows.split(size), where.split(size), strict=True):
        codes, output, seconds = _applied(coder, part)
        tokens = first + torch.arange(int(there.sum()))
        there = there.to(codes.device)
        yield Applied(tokens, codes[there], output[there], seconds)
        first += len(tokens)


@torch.no_grad()
def output_of_changed(coder: Any, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A coder's output with its codes changed.

    Args:
        coder: any SAELens coder.
        rows: [rows, context, d_in].
        change: takes codes [rows, context, latents] and gives them changed.

    Returns:
        [rows, context, d_out], on the coder's device.
    """
    rows = _for(coder, rows)
    with heads_side_by_side(coder):
        changed = change(coder.encode(rows))
        if isinstance(coder, SkipConnection):
            return coder.decode_with_input(changed, rows)
        output = coder.decode(changed)
        if decodes_codes_alone(coder):
            return output
        # What is not of the codes stays as it was.
        return output + coder(rows) - coder.decode(coder.encode(rows))


def _applied(coder: Any, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    inputs = _for(coder, inputs)
    with heads_side_by_side(coder):
        started = _now(coder.device)
        codes = coder.encode(inputs)
        seconds = _now(coder.device) - started
        output = coder.decode(codes) if decodes_codes_alone(coder) else coder(inputs)
    return codes, output, seconds


def _for(coder: Any, inputs: Tensor) -> Tensor:
    return inputs.to(coder.device, torch.float32)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


ROWS_PER_FORWARD = 8


class SplicedModel:
    """Cross-entropy of a hooked model with an activation replaced by a coder's output.

    Args:
        model: a TransformerBridge, HookedTransformer or SAELens' HookedProxyLM.
        rows: int64 [rows, context], token ids.
        hook_name: the activation that coders read.
        hook_name_out: the activation they replace; hook_name where None, for autoencoders.
        first_position: positions before it stay as they are. An attention sink at position 0 has
            such a norm that replacing it would measure the sink and not the coder.

    Raises:
        ValueError: the model has no such hook.
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
        """Losses with the coder's output in place, over all tokens of the rows."""

        def loss(rows: Tensor, where: Tensor) -> Tensor:
            return self._splice.replaced(rows, where, lambda x, _: coder(x))

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
    model: HookedModel,
    rows: Tensor,
    hook_name: str,
    hook_name_out: str,
    first_position: int = 0,
) -> tuple[Tensor, Tensor]:
    """What a transcoder is measured on: the activations of the same tokens at two hooks.

    Args:
        model: as SplicedModel takes it.
        rows: int64 [rows, context], token ids.
        hook_name: where inputs are read.
        hook_name_out: where targets are.
        first_position: positions before it are left out.

    Returns:
        [tokens, d_in] and [tokens, d_out], row by row.

    Raises:
        ValueError: the model has no such hook.
    """
    splice = Splice(
        model,
        resolve_hook(model, "hook_name", hook_name),
        resolve_hook(model, "hook_name_out", hook_name_out),
    )
    found: list[tuple[Tensor, Tensor]] = []
    for batch in tqdm(rows.split(ROWS_PER_FORWARD), "Reading activations", leave=False):
        source, target = (x[:, first_position:].flatten(0, 1) for x in splice.read(batch))
        found.append((source, target))
    sources, targets = zip(*found, strict=True)
    return torch.cat(sources), torch.cat(targets)


@torch.no_grad()
def read_hooks(model: HookedModel, hook_names: Iterable[str], tokens: Tensor) -> dict[str, Tensor]:
    """Activations of one forward pass, which ends at the last layer that is asked for.

    Args:
        model: as SplicedModel takes it.
        hook_names: as resolve_hook gives them.
        tokens: int64 [rows, context].

    Returns:
        Of each hook [rows, context, width], the heads of a hook that has some side by side.

    Raises:
        ValueError: the model does not pass through one of them.
    """
    views = {name: HookView.of(name) for name in hook_names}
    found: dict[str, Tensor] = {}
    points = cast(Mapping[str, nn.Module], model.hook_dict)

    def keep(name: str, view: HookView) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: found.update({name: view.read(model, output)})

    handles = [
        points[view.hook_name].register_forward_hook(keep(name, view))
        for name, view in views.items()
    ]
    layers = [extract_stop_at_layer_from_tlens_hook_name(view.hook_name) for view in views.values()]
    known = [layer for layer in layers if layer is not None]
    stop = {"stop_at_layer": max(known)} if len(known) == len(layers) else {}
    try:
        model(tokens, **stop)
    finally:
        for handle in handles:
            handle.remove()
    if missing := views.keys() - found.keys():
        raise ValueError(f"{sorted(missing)}: the model does not pass through these hooks.")
    return found
