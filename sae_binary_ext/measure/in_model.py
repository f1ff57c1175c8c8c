"""The model of coders: loaded, read at their hooks, and run with their outputs in place.

Three kinds need more than encode and decode of single tokens. Temporal coders attend to earlier
tokens, so they take whole rows. Skip transcoders and temporal coders have an output that does not
come from their codes alone. Coders of attn.hook_z split and join heads; here heads lie side by
side already.
"""

import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens import SAE, Transcoder
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
from sae_binary_ext.measure.candidates import Candidate, common_model
from sae_binary_ext.saelens.hooked_model import (
    BRIDGES,
    HOOKED_TRANSFORMER,
    decisive_settings,
    known_to_hooked_transformer,
    load_hooked_model,
    positions_of,
)
from sae_binary_ext.saelens.splice import HookedModel, HookView, Splice, SplicedLosses, resolve_hook
from sae_binary_ext.saelens.transcoder import SkipConnection

logger = logging.getLogger(__name__)
ROWS_PER_FORWARD = 8
# Coders with one of these have the output decode(encode(x)).
PLAIN_FORWARDS = (SAE.forward, Transcoder.forward, SkipConnection.forward)
PLAIN_MODEL = "AutoModelForCausalLM"
# Hooks at which an unprocessed HookedTransformer and a TransformerBridge have the same activations.
SAME_HOOKS = re.compile(
    r"hook_embed|blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_(mlp|attn)_out|mlp\.hook_(in|pre|post)"
    r"|attn\.hook_[qkvz])"
)
# Of these, two depend on the model. HookedTransformer applies a norm after attention or MLP before
# the hook, a bridge after it. Hooks of norms agree for LayerNorm only.
WITHOUT_POST_NORM = re.compile(r"blocks\.\d+\.hook_(mlp|attn)_out")
OF_LAYER_NORM = re.compile(r"blocks\.\d+\.ln[12]\.hook_(normalized|scale)")


def open_model(
    candidates: list[Candidate], model: str | None, folder: Path, device: str
) -> tuple[str, HookedModel, PreTrainedTokenizerBase]:
    """Load the hooked model of some coders, as their files say.

    Args:
        candidates: the coders.
        model: Hub id or folder; None takes the model that the coders' files name. SmolLM2 then
            comes from the installed package.
        folder: SmolLM2's files are written into its subfolder "model".
        device: of the model.

    Returns:
        The model's name, the model and its tokenizer.

    Raises:
        ValueError: the coders need several models, or one model loaded in different ways.
    """
    name = common_model(candidates, model)
    settings = _common_settings(candidates)
    embedded = model is None and name == MODEL_NAME
    path = str(export_smollm2(folder / "model")) if embedded else name
    hooked: Any = load_hooked_model(_common_class(candidates, path), path, device, settings)
    if isinstance(hooked, TransformerBridge):
        _check_same_in_bridge(candidates, hooked)
    return name, hooked, cast(PreTrainedTokenizerBase, hooked.tokenizer)


def settings_of_model(candidate: Candidate) -> dict[str, Any]:
    """The settings in a coder's files for loading its model, without defaults."""
    try:
        return decisive_settings(candidate.coder.cfg.metadata.model_from_pretrained_kwargs)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error


def fitting_context(model: HookedModel, context_size: int) -> int:
    """context_size, or the number of the model's positions if that is smaller; logs the change."""
    positions = positions_of(model)
    if positions is None or positions >= context_size:
        return context_size
    logger.warning(
        "context_size=%d: the model has %d positions, so rows have that many tokens.",
        context_size,
        positions,
    )
    return positions


def _common_settings(candidates: list[Candidate]) -> dict[str, Any]:
    """Settings for the model of all coders; raises ValueError if they differ."""
    first, *others = candidates
    settings = settings_of_model(first)
    for other in others:
        if (own := settings_of_model(other)) != settings:
            raise ValueError(
                f"{first.name} and {other.name} need different models: the files of the first say "
                f"to load it with {told(settings)}, those of the second with {told(own)} "
                "(model_from_pretrained_kwargs). Measure them one after the other."
            )
    return settings


def told(settings: Mapping[str, Any]) -> str:
    """Settings of a model for a message."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"


def _common_class(candidates: list[Candidate], path: str) -> str | None:
    """The class of hooked model for all coders; None for a bridge, which can replace most."""
    classes = {_class_of(each): each.name for each in candidates}
    if len(classes) > 1:
        if others := set(classes) - {None, HOOKED_TRANSFORMER, PLAIN_MODEL}:
            raise ValueError(
                f"coders: were trained with models of different classes, {classes}, and no other "
                f"class can replace {sorted(map(str, others))}. Measure them one after the other."
            )
        return None
    (only,) = classes
    if only == HOOKED_TRANSFORMER and not known_to_hooked_transformer(path):
        logger.info("%s: TransformerLens has no model of this name, so a bridge reads it.", path)
        return None
    return only


def _class_of(candidate: Candidate) -> str | None:
    name = candidate.coder.cfg.metadata.model_class_name
    return None if name in BRIDGES else name


def _check_same_in_bridge(candidates: list[Candidate], bridge: TransformerBridge) -> None:
    """Raise ValueError if a HookedTransformer's coder would read other activations in a bridge."""
    names = cast(Mapping[str, Any], bridge.hook_dict)
    has_post_norms = any(re.search(r"\.ln[12]_post\.", name) for name in names)
    layer_norm = str(bridge.cfg.normalization_type).startswith("LN")
    for candidate in candidates:
        if _class_of(candidate) != HOOKED_TRANSFORMER:
            continue
        for hook in (candidate.site.hook_name, candidate.site.hook_name_out):
            name = HookView.of(hook).hook_name
            same = SAME_HOOKS.fullmatch(name) or (layer_norm and OF_LAYER_NORM.fullmatch(name))
            if not same or (has_post_norms and WITHOUT_POST_NORM.fullmatch(name)):
                raise ValueError(
                    f"{candidate.name}: was trained at {hook} of a {HOOKED_TRANSFORMER}, and a "
                    "TransformerBridge may have other activations there. Measure coders of "
                    f"{HOOKED_TRANSFORMER} alone, and name the model as TransformerLens does."
                )


@dataclass(frozen=True)
class Applied:
    """Codes [tokens, latents] and outputs [tokens, d_out] of a coder for some tokens of a batch.

    `tokens` has their numbers in the batch, int64 [tokens]; encode took `seconds`.
    """

    tokens: Tensor
    codes: Tensor
    output: Tensor
    seconds: float


def reads_sequences(coder: Any) -> bool:
    """Whether a token's code depends on the tokens before it."""
    return isinstance(coder, TemporalSAE)


def decodes_codes_alone(coder: Any) -> bool:
    """Whether the coder's output comes from its codes alone."""
    return type(coder).forward in PLAIN_FORWARDS


@contextmanager
def heads_side_by_side(coder: Any) -> Generator[None]:
    """Let a coder of attn.hook_z take and give [..., heads * d_head]."""
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
    """Codes [tokens, latents] of the tokens in `where`, bool [rows, context], row by row.

    `rows` are activations of whole rows, [rows, context, d_in].
    """
    with heads_side_by_side(coder):
        if reads_sequences(coder):
            return coder.encode(_for(coder, rows))[where.to(coder.device)]
        return coder.encode(_for(coder, rows[where]))


@torch.no_grad()
def apply_to_tokens(coder: Any, inputs: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """Apply a coder to single tokens, inputs [tokens, d_in].

    A part has about codes_at_once codes (tokens times latents).

    Raises:
        ValueError: the coder reads sequences.
    """
    if reads_sequences(coder):
        raise ValueError(
            f"{type(coder).__name__} reads whole sequences, and got single tokens. Measure it "
            "with sae-binary compare, which keeps rows together."
        )
    size = max(codes_at_once // coder.cfg.d_sae, 1)
    for tokens in torch.arange(len(inputs)).split(size):
        codes, output, seconds = _applied(coder, inputs[tokens])
        yield Applied(tokens, codes, output, seconds)


@torch.no_grad()
def apply_to_rows(coder: Any, rows: Tensor, where: Tensor, codes_at_once: int) -> Iterator[Applied]:
    """Apply a coder that reads sequences, a few rows at a time; arguments as for codes_of."""
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
    """Output [rows, context, d_out] of a coder for rows [rows, context, d_in] if its codes change.

    `change` maps codes [rows, context, latents] to the new ones.
    """
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


class SplicedModel:
    """Cross-entropy of a hooked model if a coder's output replaces an activation.

    Args:
        model: a TransformerBridge, HookedTransformer or SAELens' HookedProxyLM.
        rows: int64 [rows, context], token ids.
        hook_name: the activation that coders read.
        hook_name_out: the activation they replace; None for autoencoders, which replace hook_name.
        first_position: positions before it are not replaced. The attention sink at position 0 has
            a huge norm, and would decide the figures.

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
        """Losses with the coder's output in place, as means over all tokens."""

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
    model: HookedModel, rows: Tensor, hook_name: str, hook_name_out: str, first_position: int = 0
) -> tuple[Tensor, Tensor]:
    """Activations of the same tokens at two hooks: inputs and targets of a transcoder.

    Args:
        model: as SplicedModel takes it.
        rows: int64 [rows, context], token ids.
        hook_name: hook of the inputs.
        hook_name_out: hook of the targets.
        first_position: positions before it are left out.

    Returns:
        [tokens, d_in] and [tokens, d_out], row by row.

    Raises:
        ValueError: the model has no such hook.
    """
    source = resolve_hook(model, "hook_name", hook_name)
    splice = Splice(model, source, resolve_hook(model, "hook_name_out", hook_name_out))
    batches = tqdm(rows.split(ROWS_PER_FORWARD), "Reading activations", leave=False)
    found = [splice.read(batch) for batch in batches]
    inputs, targets = (
        torch.cat([each[:, first_position:].flatten(0, 1) for each in either])
        for either in zip(*found, strict=True)
    )
    return inputs, targets


@torch.no_grad()
def read_hooks(model: HookedModel, hook_names: Iterable[str], tokens: Tensor) -> dict[str, Tensor]:
    """Read activations in one forward pass, which stops after the last layer needed.

    `hook_names` are as resolve_hook gives them. Returns [rows, context, width] for each hook, with
    heads side by side.

    Raises:
        ValueError: the model does not pass through one of the hooks.
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
