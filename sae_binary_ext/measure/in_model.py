"""Loads the hooked model of a coder, reads it at hooks, and runs it with coders spliced in.

Temporal coders attend to earlier tokens, so they take whole rows. The outputs of temporal coders
and of skip transcoders do not come from codes alone. Coders of attn.hook_z take all heads of a
token as one vector here.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens import SAE, HookedSAETransformer, SAETransformerBridge, Transcoder
from sae_lens.load_model import load_model
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.util import (
    DTYPE_MAP,
    dtype_to_str,
    extract_stop_at_layer_from_tlens_hook_name,
    str_to_dtype,
)
from torch import Tensor, nn
from tqdm import tqdm
from transformer_lens.loading_from_pretrained import (
    OFFICIAL_MODEL_NAMES,  # pyright: ignore[reportPrivateImportUsage]  # where version 3.0 has it too
    make_model_alias_map,
)

from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.splice import (
    HookedModel,
    HookView,
    Splice,
    SplicedLosses,
    heads_side_by_side,
    resolve_hook,
)
from sae_binary_ext.saelens.transcoder import SkipConnection

ROWS_PER_FORWARD = 8
# A coder with one of these forward methods has the output decode(encode(x)).
PLAIN_FORWARDS = (SAE.forward, Transcoder.forward, SkipConnection.forward)
# Finds the layer in a hook's name: blocks.9.hook_resid_pre, model.layers.9, transformer.h.9.mlp
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)(?=\.|$)")
EVERY_LAYER = 3
HOOKED_TRANSFORMER = "HookedTransformer"
BRIDGES = ("TransformerBridge", "SAETransformerBridge")
# Organisations on the Hub: TransformerLens names some of their models without this prefix.
MOVED_TO = ("openai-community/", "distilbert/")
# TransformerLens' options that process weights. By default we use none of them.
PROCESSING = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
    "refactor_factored_attn_matrices": False,
}
# Other settings that change activations, with their defaults.
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    **dict.fromkeys(("revision", "first_n_layers", "n_ctx", "hf_config_overrides")),
    **dict.fromkeys(("checkpoint_index", "checkpoint_value", "checkpoint_label")),
}
NOT_OF_BRIDGES = {"checkpoint_label", "first_n_layers"}
# Settings that are ignored, because they change no activation. trust_remote_code is among them,
# because a coder's file may not decide whether a model's own code runs.
OF_NO_EFFECT = {
    "attn_implementation",
    "cache_dir",
    "default_padding_side",
    "default_prepend_bos",
    "device",
    "device_map",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "move_to_device",
    "n_devices",
    "token",
    "trust_remote_code",
    "use_safetensors",
}


def reads_sequences(coder: Any) -> bool:
    """Whether a token's code depends on the tokens before it."""
    return isinstance(coder, TemporalSAE)


def decodes_codes_alone(coder: Any) -> bool:
    """Whether the coder's output comes from its codes alone."""
    return type(coder).forward in PLAIN_FORWARDS


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
    """Apply a coder to tokens [tokens, d_in] in parts of about codes_at_once codes.

    A coder that reads sequences takes rows [rows, context, d_in], with the tokens that count in
    `where`, bool [rows, context]. ValueError if that coder gets single tokens. Yields the indices
    of tokens, int64, their codes [tokens, latents], outputs [tokens, d_out], and the seconds that
    encode took.
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
            output = _decoded(coder, codes) if decodes_codes_alone(coder) else coder(own)
        if where is not None:
            there = where[part].to(codes.device)
            codes, output = codes[there], output[there]
        yield first + torch.arange(len(codes)), codes, output, seconds
        first += len(codes)


def _decoded(coder: Any, codes: Tensor) -> Tensor:
    """Output of codes. Binary coders sum the decoder rows of the few latents that fire."""
    sums_rows = type(coder).decode is BinaryCoder.decode
    return coder.decode_firings(codes) if sums_rows else coder.decode(codes)


@torch.no_grad()
def output_of_changed(coder: Any, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Output [rows, context, d_out] for rows [rows, context, d_in] if `change` edits the codes."""
    rows = _for(coder, rows)
    with heads_side_by_side(coder):
        changed = change(coder.encode(rows))
        if isinstance(coder, SkipConnection):
            return coder.decode_with_input(changed, rows)
        output = coder.decode(changed)
        if decodes_codes_alone(coder):
            return output
        # Only the decoded codes change; the rest of the output stays the same.
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
        hook_name_out: the activation that is replaced; None replaces hook_name (autoencoders).
        first_position: earlier positions, for example an attention sink, are not replaced.
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
        """Mean losses over all tokens with the coder's output spliced in."""
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
    """Activations [rows, context, width] at hooks of resolve_hook, with all heads as one vector.

    The forward pass stops after the last layer needed. ValueError if the model never runs a hook.
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
    """The layer of a hook; ValueError if the hook's name has no layer number."""
    if (found := BLOCK.search(hook)) is None:
        raise ValueError(f"hook={hook!r}: belongs to no layer. Give a coder of a layer.")
    return int(found[1])


def layer_hooks(
    model: HookedModel, hooks: tuple[str, str], layers: Iterable[int]
) -> dict[int, tuple[str, str]]:
    """The model's names of a coder's two hooks, for each of `layers` and for the coder's own layer.

    Every third layer is taken if `layers` is empty. ValueError if the coder's hooks have no layer
    or two different ones, or if the model lacks a layer.
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


def official_name(name: str) -> str:
    """A single name for a model with several (gpt2 for gpt2-small); for a folder, its full path."""
    known = make_model_alias_map()
    for prefix in ("", *MOVED_TO):
        if name.startswith(prefix) and (found := known.get(name.removeprefix(prefix).lower())):
            return found
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def decisive_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings in model_from_pretrained_kwargs that change activations, if not at their defaults.

    The results are equal if two coders need the same model. An unknown setting is a ValueError.
    """
    found = dict(settings or {})
    if "torch_dtype" in found:
        found["dtype"] = found.pop("torch_dtype")
    if found.get("dtype") in DTYPE_MAP:
        found["dtype"] = dtype_to_str(DTYPE_MAP[found["dtype"]])
    defaults = PROCESSING | DEFAULTS
    unknown = sorted(found.keys() - defaults.keys() - OF_NO_EFFECT)
    if unknown:
        raise ValueError(
            f"model_from_pretrained_kwargs={settings}: {unknown} may change activations, and is "
            f"not supported here. Known are {sorted(defaults)}. If it changes no activation, "
            "delete it from the coder's cfg.json."
        )
    changed = sorted(key for key in found.keys() & defaults if found[key] != defaults[key])
    return {key: found[key] for key in changed}


def load_hooked_model(
    class_name: str | None, name: str, device: str, settings: Mapping[str, Any] | None = None
) -> HookedModel:
    """The model of a coder, whose metadata has class_name and settings.

    name is a Hub id or a folder. If class_name is None, the model is a TransformerBridge.
    ValueError if a setting is unknown, or if the class does not have it. ValueError if `name` is a
    folder and the class is HookedTransformer, which loads models by name alone.
    """
    decisive = decisive_settings(settings)
    # Replace an alias of TransformerLens, because no other loader knows it.
    name = make_model_alias_map().get(name.lower(), name)
    if class_name is None or class_name in BRIDGES:
        return _load_bridge(name, device, decisive)
    if class_name == HOOKED_TRANSFORMER:
        if Path(name).is_dir() and not known_to_hooked_transformer(name):
            raise ValueError(
                f"model_class_name={HOOKED_TRANSFORMER!r} of the coders: it loads models by name, "
                f"but {name!r} is a folder. Give the model's name on the Hub. Or set "
                "metadata.model_class_name in each coder's cfg.json to a class that loads folders: "
                "'TransformerBridge', which has the same hook names, or 'AutoModelForCausalLM', "
                "whose hooks are modules (model.layers.9)."
            )
        # Transcoders read mlp.hook_in, which only SAELens' subclass has.
        return HookedSAETransformer.from_pretrained_no_processing(
            official_name(name), device=device, **decisive
        )
    if processing := sorted(decisive.keys() & PROCESSING.keys()):
        raise ValueError(
            f"model_from_pretrained_kwargs: models of {class_name} take no {processing}. Set "
            f"metadata.model_class_name in each coder's cfg.json to {HOOKED_TRANSFORMER!r} or "
            f"{BRIDGES[0]!r}, which do."
        )
    return load_model(class_name, name, device=device, model_from_pretrained_kwargs=decisive)


def known_to_hooked_transformer(name: str) -> bool:
    """Whether HookedTransformer can load this model by name (it never loads a folder)."""
    return official_name(name) in OFFICIAL_MODEL_NAMES


def positions_of(model: HookedModel) -> int | None:
    """The longest row in tokens that the model takes; None if its config does not say."""
    config: Any = getattr(model, "cfg", None)
    if config is not None:
        return getattr(config, "n_ctx", None)
    config = getattr(getattr(model, "model", None), "config", None)
    return getattr(config, "max_position_embeddings", None)


def _load_bridge(name: str, device: str, decisive: dict[str, Any]) -> HookedModel:
    processing = {key: decisive.pop(key, value) for key, value in PROCESSING.items()}
    if unknown := sorted(decisive.keys() & NOT_OF_BRIDGES):
        raise ValueError(
            f"model_from_pretrained_kwargs: a {BRIDGES[0]} takes no {unknown}. Set "
            f"metadata.model_class_name in each coder's cfg.json to {HOOKED_TRANSFORMER!r}, and "
            "give the model by a name that it knows."
        )
    if "dtype" in decisive:
        decisive["dtype"] = str_to_dtype(decisive["dtype"])
    model: Any = SAETransformerBridge.boot_transformers(name, device=device, **decisive)
    if any(processing.values()):
        model.enable_compatibility_mode(disable_warnings=True, **processing)
    return model
