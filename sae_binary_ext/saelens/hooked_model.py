"""Loads the model of a coder, with the class and the settings that the coder's file names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens import HookedSAETransformer, SAETransformerBridge
from sae_lens.load_model import load_model
from sae_lens.util import DTYPE_MAP, dtype_to_str, str_to_dtype
from transformer_lens.loading_from_pretrained import (
    OFFICIAL_MODEL_NAMES,  # pyright: ignore[reportPrivateImportUsage]  # where version 3.0 has it too
    make_model_alias_map,
)

from sae_binary_ext.saelens.splice import HookedModel

HOOKED_TRANSFORMER = "HookedTransformer"
BRIDGES = ("TransformerBridge", "SAETransformerBridge")
# Organisations on the Hub. TransformerLens knows some of their models without this prefix.
MOVED_TO = ("openai-community/", "distilbert/")
# The processing of weights that TransformerLens offers, with our defaults: none.
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
# Settings that do not change activations. trust_remote_code is one: a coder's file may not decide
# whether a model's own code runs.
OF_NO_EFFECT = {
    *("attn_implementation", "cache_dir", "default_padding_side", "default_prepend_bos", "device"),
    *("device_map", "local_files_only", "low_cpu_mem_usage", "max_memory", "move_to_device"),
    *("n_devices", "token", "trust_remote_code", "use_safetensors"),
}


def official_name(name: str) -> str:
    """One name for a model with several: gpt2 for gpt2-small; for a folder, its full path."""
    known = make_model_alias_map()
    for prefix in ("", *MOVED_TO):
        if name.startswith(prefix) and (found := known.get(name.removeprefix(prefix).lower())):
            return found
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def decisive_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a coder's model_from_pretrained_kwargs that changes activations, no defaults.

    It is equal for settings that load the same model. An unknown setting is a ValueError.
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

    name is a Hub id or a folder. If class_name is None, the model is a TransformerBridge. A setting
    that is unknown, or that the class does not have, is a ValueError. So is a folder for
    HookedTransformer, which loads models by name alone.
    """
    decisive = decisive_settings(settings)
    # Only TransformerLens knows its aliases.
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
    """Whether HookedTransformer has a model of this name. It loads no folders."""
    return official_name(name) in OFFICIAL_MODEL_NAMES


def positions_of(model: HookedModel) -> int | None:
    """The most tokens that a row of the model can have; None if its config does not say."""
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
