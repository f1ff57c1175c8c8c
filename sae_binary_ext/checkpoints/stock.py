"""Coders that SAELens itself loads: its own architectures, and files from before version 6."""

from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, errors_told, has_values, read_json
from sae_binary_ext.checkpoints.normalization import Scaling, normalization_lines, scaling_of
from sae_binary_ext.checkpoints.portable import finetuning_lines
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS = "sae_weights.safetensors"
# SAELens loads these architectures only for training, and writes another one for inference.
TRAINING_ONLY = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}
_RELUS = ("standard", "transcoder", "skip_transcoder")
_JUMPRELUS = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
# Which latents fire, for each architecture that no other format can store.
RULES = {
    "abstopk": "the k largest pre-activations in absolute value, with their sign",
    "gated": "pre-activations of one encoder, gated by another's",
    "matching_pursuit": "latents picked one after another from the residual",
    "temporal": "latents that see earlier tokens too",
    **dict.fromkeys(_RELUS, "every positive pre-activation (ReLU)"),
    **dict.fromkeys(_JUMPRELUS, "pre-activations above a threshold of each latent"),
    **dict.fromkeys(TRAINING_ONLY, "the k largest pre-activations a token on average over a batch"),
}
# Activations of SAELens before version 6 that SAELens 6 computes too.
OLD_ACTIVATIONS = ("relu", "topk", "jumprelu")
# Tensors that old files hold beside the coder's own.
_FINETUNED = "finetuning_scaling_factor"
_LEGACY_TENSORS = {"scaling_factor", _FINETUNED}


def is_old(config: dict[str, Any]) -> bool:
    """Whether SAELens before version 6 wrote a config of a stock architecture."""
    return "metadata" not in config


def current_config(folder: Path) -> dict[str, Any]:
    """A config in the fields of SAELens 6. SAELens must be installed to translate an older config.

    CheckpointError if the file is damaged, or SAELens cannot translate it.
    """
    path = folder / "cfg.json"
    config = read_json(path)
    architecture = config.get("architecture")
    known = architecture in (None, "topk", *RULES) and architecture not in TRAINING_ONLY
    if not is_old(config) or not known:
        return config
    # SAELens 6 drops this field, and would compute ReLU or topk instead.
    name = config.get("activation_fn_str", config.get("activation_fn"))
    if name not in (None, *OLD_ACTIVATIONS):
        raise CheckpointError(
            f"{path}: activation_fn={name!r}: expected one of {OLD_ACTIVATIONS}. SAELens 6 would "
            "silently compute other codes. Use the coder in the SAELens that wrote it: "
            "pip install 'sae-lens<6'."
        )
    import_module("sae_binary_ext.saelens")  # raises an error with advice without SAELens
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    with errors_told(f"{folder}: its host refuses it"):
        return handle_config_defaulting(config)


def refuse(architecture: Any, source: Path) -> None:
    """Raise CheckpointError, with the reason, if only SAELens has an architecture."""
    refuse_training_only(source, {"architecture": architecture})
    if isinstance(architecture, str) and architecture in RULES:
        raise CheckpointError(
            f"{source}: architecture={architecture!r} ({RULES[architecture]}): no other format can "
            "store such coders. Use it in SAELens: load_coder(..., host='saelens')."
        )


def refuse_training_only(source: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for a training checkpoint that SAELens cannot load for inference."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in TRAINING_ONLY:
        return
    folder = source.parent if source.suffix else source
    found = scaling(folder, read_json(folder / "cfg.json")) if folder.is_dir() else None
    folding = ""
    if found is not None and found.whitening is None:
        folding = f"  coder.fold_activation_norm_scaling_factor({found.input!r})\n"
    elif found is not None:
        folding = (
            "  from safetensors.torch import load_file\n"
            f"  whitening = load_file({str(folder / found.file)!r})\n"
            "  coder.fold_activation_whitening(\n"
            "      whitening['mean'], whitening['matrix'], whitening['inverse_matrix'])\n"
        )
    raise CheckpointError(
        f"{source}: architecture={architecture!r}: a training checkpoint, which SAELens loads only "
        f"for training. Write the {TRAINING_ONLY[architecture]} coder that it becomes, and load "
        "that:\n"
        "  from sae_lens import TrainingSAE\n"
        f"  coder = TrainingSAE.load_from_disk({str(folder)!r})\n"
        f"{folding}  coder.save_inference_model('NEW_FOLDER')"
    )


def load(folder: Path, device: str = "cpu") -> Any:
    """Load a coder with SAELens' own loader. A training checkpoint's scale is folded in.

    CheckpointError if SAELens cannot load it, or cannot fold its scale.
    """
    config = current_config(folder)
    refuse_training_only(folder, config)
    import_module("sae_binary_ext.saelens")
    import sae_lens

    loader: Any = sae_lens.SAE
    with errors_told(f"{folder}: its host refuses it"):
        coder: Any = loader.load_from_disk(folder, device=device, converter=_read_folded)
        found = scaling(folder, config)
        if found is not None:
            _fold_into(coder, found, folder)
        return coder


def _fold_into(coder: Any, scaling: Scaling, folder: Path) -> None:
    try:
        if scaling.whitening is None:
            coder.fold_activation_norm_scaling_factor(scaling.input)
        else:
            coder.fold_activation_whitening(*scaling.whitening)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{folder}: {scaling.file} scaled the activations of training. SAELens cannot fold the "
            f"scale into architecture={coder.cfg.architecture()!r}: {error}. Load the coder with "
            "sae_lens.SAE.load_from_disk, and scale the activations yourself."
        ) from error


def checked_and_folded(folder: Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
    """A folder's config and tensors as SAELens reads them, if SAELens computes the right codes.

    CheckpointError for a training checkpoint, and for an activation that SAELens 6 would replace.
    """
    refuse_training_only(folder, current_config(folder))
    return _read_folded(folder, device, cfg_overrides)


def _read_folded(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
    """Read a folder as SAELens does, and multiply decoder rows by the factors of finetuning.

    SAELens before version 6 multiplies codes by these factors before it decodes. Version 6 ignores
    the factors.
    """
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    config, state = sae_lens_disk_loader(path, device, cfg_overrides)
    if (factor := state.pop(_FINETUNED, None)) is not None:
        state["W_dec"] = state["W_dec"] * factor[:, None]
    return config, state


def scaling(folder: Path, config: dict[str, Any]) -> Scaling | None:
    """The scale that `load` folds into the weights of a training checkpoint, or None for others."""
    d_in = Fields(config, folder / "cfg.json").take_size("d_in")
    return scaling_of(folder, config.get("normalize_activations"), d_in)


def described(folder: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """What `inspect` shows: the architecture in words, the number of latents, and labelled lines.

    CheckpointError if tensors are missing, of other sizes than the config says, or not finite.
    """
    config = current_config(folder)
    sizes = _sizes(Fields(config, folder / "cfg.json"))
    _check_weights(folder / WEIGHTS, _expected(*sizes))
    words, lines = in_words(config, folder / "cfg.json", scaling(folder, config))
    if sizes[0] == "topk":
        words += ", in a file of SAELens before version 6"
    return words, sizes[2], lines


def in_words(
    config: dict[str, Any], source: Path, scale: Scaling | None = None
) -> tuple[str, list[tuple[str, str]]]:
    """The architecture in words, and labelled lines, from a config of SAELens 6.

    source is named in errors. `scale` is the scaling that `load` folds into the weights.
    """
    fields = Fields(config, source)
    architecture, d_in, latents, d_out = _sizes(fields)
    rule, words = RULES.get(architecture), f"{architecture}, of SAELens only"
    if architecture in TRAINING_ONLY:
        words = f"{architecture}, a training checkpoint that save_inference_model makes loadable"
    elif architecture == "topk":
        rule, words = f"topk, k={fields.take_size('k')}", "TopK autoencoder"
    reshaped = str(config.get("reshape_activations", "none"))
    metadata = fields.take("metadata", dict, {})
    shown = [
        ("sizes", f"{d_in} -> {latents} latents -> {d_out}"),
        ("dtype", fields.take("dtype", str, "float32").removeprefix("torch.")),
        ("selection", rule),
        *normalization_lines(config.get("normalize_activations"), scale),
        ("reshapes", None if reshaped == "none" else reshaped),
        ("model", metadata.get("model_name")),
        ("hook (SAELens)", metadata.get("hook_name")),
        ("output hook (SAELens)", metadata.get("hook_name_out")),
    ]
    notes = metadata.get(NOTES_KEY)
    shown += finetuning_lines(notes.get("settings") if isinstance(notes, dict) else None)
    return words, [(label, value) for label, value in shown if isinstance(value, str)]


def _sizes(fields: Fields) -> tuple[str, int, int, int]:
    """The architecture, d_in, the number of latents, and d_out."""
    architecture = fields.take("architecture", str)
    d_in, latents = fields.take_size("d_in"), fields.take_size("d_sae")
    transcoder = architecture in RULES and architecture.endswith("transcoder")
    d_out = fields.take_size("d_out", d_in) if transcoder else d_in
    return architecture, d_in, latents, d_out


def _expected(
    architecture: str, d_in: int, latents: int, d_out: int
) -> dict[str, tuple[int, ...]] | None:
    """The shape of each tensor by name, or None for an architecture that only SAELens knows."""
    if architecture not in (*RULES, "topk") or architecture == "temporal":
        return None
    expected: dict[str, tuple[int, ...]] = {"W_dec": (latents, d_out), "b_dec": (d_out,)}
    if architecture == "matching_pursuit":
        return expected
    expected["W_enc"] = (d_in, latents)
    if architecture == "gated":
        return expected | dict.fromkeys(("b_gate", "r_mag", "b_mag"), (latents,))
    expected["b_enc"] = (latents,)
    if architecture.startswith("jumprelu"):
        expected["threshold"] = (latents,)
    if architecture.endswith("skip_transcoder"):
        expected["W_skip"] = (d_out, d_in)
    if architecture in TRAINING_ONLY:
        expected["topk_threshold"] = ()
    return expected


def _check_weights(path: Path, expected: dict[str, tuple[int, ...]] | None) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            known = found if expected is None else expected
            for name in sorted(known.keys() | found.keys() - _LEGACY_TENSORS):
                shape, asked = found.get(name, "missing"), known.get(name, "no such tensor")
                if shape != asked:
                    told = f"{name} is {shape} where its config asks for {asked}"
                    raise CheckpointError(f"{path}: {told}.")
            for name in found if has_values(path) else ():
                if not file.get_tensor(name).isfinite().all():
                    raise CheckpointError(f"{path}: {name} holds values that are not finite.")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error
