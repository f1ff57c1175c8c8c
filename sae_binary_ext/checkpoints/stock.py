"""Coders that SAELens itself loads: its own architectures, and files from before version 6."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, has_values, read_json
from sae_binary_ext.checkpoints.normalization import SCALED, WHITENED, Scaling, scaling_of

WEIGHTS = "sae_weights.safetensors"
_RELU = "every positive pre-activation (ReLU)"
_JUMPRELU = "pre-activations above a threshold of each latent"
_BATCHTOPK = "the k largest pre-activations a token on average over a batch"
# Which latents fire, for each architecture that no other format can store.
RULES = {
    "abstopk": "the k largest pre-activations in absolute value, with their sign",
    "batchtopk": _BATCHTOPK,
    "gated": "pre-activations of one encoder, gated by another's",
    "jumprelu": _JUMPRELU,
    "jumprelu_skip_transcoder": _JUMPRELU,
    "jumprelu_transcoder": _JUMPRELU,
    "matching_pursuit": "latents picked one after another from the residual",
    "matryoshka_batchtopk": _BATCHTOPK,
    "skip_transcoder": _RELU,
    "standard": _RELU,
    "temporal": "latents that see earlier tokens too",
    "transcoder": _RELU,
}
# SAELens loads these only for training, and writes another architecture for inference.
TRAINING_ONLY = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}

# Activations of SAELens before version 6 that SAELens 6 computes too.
OLD_ACTIVATIONS = ("relu", "topk", "jumprelu")
# Tensors of old files beside the coder's own.
_FINETUNED = "finetuning_scaling_factor"
_LEGACY_TENSORS = ("scaling_factor", _FINETUNED)

T = TypeVar("T")


def is_old(config: dict[str, Any]) -> bool:
    """Whether SAELens before version 6 wrote a config of a stock architecture."""
    return "metadata" not in config


def current_config(folder: Path) -> dict[str, Any]:
    """A config in the fields of SAELens 6. SAELens itself translates older configs.

    Raises:
        CheckpointError: the file is damaged, or SAELens cannot translate it.
        ModuleNotFoundError: the config is old and SAELens is not installed.
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
    import_module("sae_binary_ext.saelens")  # if SAELens is missing, says what to install
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    return _hosts(folder, lambda: handle_config_defaulting(config))


def in_words(architecture: str) -> str:
    """The architecture as `inspect` describes it."""
    if architecture in TRAINING_ONLY:
        return f"{architecture}, a training checkpoint that save_inference_model makes loadable"
    if architecture == "topk":
        return "TopK autoencoder, in a file of SAELens before version 6"
    return f"{architecture}, of SAELens only"


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
    raise CheckpointError(
        f"{source}: architecture={architecture!r}: a training checkpoint, which SAELens loads only "
        f"for training. Write the {TRAINING_ONLY[architecture]} coder that it becomes, and load "
        "that:\n"
        "  from sae_lens import TrainingSAE\n"
        f"  coder = TrainingSAE.load_from_disk({str(folder)!r})\n"
        f"{_folding_lines(folder, found)}"
        "  coder.save_inference_model('NEW_FOLDER')"
    )


def _folding_lines(folder: Path, scaling: Scaling | None) -> str:
    if scaling is None:
        return ""
    if scaling.whitening is None:
        return f"  coder.fold_activation_norm_scaling_factor({scaling.input!r})\n"
    return (
        "  from safetensors.torch import load_file\n"
        f"  whitening = load_file({str(folder / scaling.file)!r})\n"
        "  coder.fold_activation_whitening(\n"
        "      whitening['mean'], whitening['matrix'], whitening['inverse_matrix'])\n"
    )


def load(folder: Path, device: str = "cpu") -> Any:
    """Load a coder with SAELens' own loader. The scale of a training checkpoint is folded in.

    Raises:
        CheckpointError: SAELens cannot load it, or cannot fold its scale.
        ModuleNotFoundError: SAELens is not installed.
    """
    config = current_config(folder)
    refuse_training_only(folder, config)
    import_module("sae_binary_ext.saelens")
    import sae_lens

    loader: Any = sae_lens.SAE
    coder: Any = _hosts(
        folder, lambda: loader.load_from_disk(folder, device=device, converter=_read_folded)
    )
    found = scaling(folder, config)
    if found is not None:
        _fold_into(coder, found, folder)
    return coder


def _read_folded(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
    """As SAELens reads a folder, with the factors of finetuning in the decoder's rows.

    SAELens before version 6 multiplies codes by them before it decodes; version 6 has no place for
    them.
    """
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    config, state = sae_lens_disk_loader(path, device, cfg_overrides)
    if (factor := state.pop(_FINETUNED, None)) is not None:
        state["W_dec"] = state["W_dec"] * factor[:, None]
    return config, state


def scaling(folder: Path, config: dict[str, Any]) -> Scaling | None:
    """The scale that load folds in for a training checkpoint. None for other coders."""
    d_in = Fields(config, folder / "cfg.json").take_size("d_in")
    return scaling_of(folder, config.get("normalize_activations"), d_in)


def _fold_into(coder: Any, scaling: Scaling, folder: Path) -> None:
    try:
        if scaling.whitening is None:
            coder.fold_activation_norm_scaling_factor(scaling.input)
        else:
            whitening = scaling.whitening
            coder.fold_activation_whitening(
                mean=whitening.mean,
                whitening_matrix=whitening.matrix,
                unwhitening_matrix=whitening.inverse,
            )
    except NotImplementedError as error:
        raise CheckpointError(
            f"{folder}: {scaling.file} scaled the activations of training. SAELens cannot fold the "
            f"scale into architecture={coder.cfg.architecture()!r}: {error}. Load the coder with "
            "sae_lens.SAE.load_from_disk, and scale the activations yourself."
        ) from error


def lines(folder: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    """The labels and values that `inspect` shows for a coder of SAELens only.

    Args:
        folder: the coder's. Its weights are checked against its config.
        config: as current_config returns it.

    Raises:
        CheckpointError: tensors are missing, of other sizes, or not finite.
    """
    fields = Fields(config, folder / "cfg.json")
    architecture = fields.take("architecture", str)
    d_in, latents = fields.take_size("d_in"), fields.take_size("d_sae")
    transcoder = architecture in RULES and architecture.endswith("transcoder")
    d_out = fields.take_size("d_out", d_in) if transcoder else d_in
    _check_weights(folder / WEIGHTS, architecture, (d_in, latents, d_out))
    metadata = fields.take("metadata", dict, {})
    named = {
        "model": metadata.get("model_name"),
        "hook (SAELens)": metadata.get("hook_name"),
        "output hook (SAELens)": metadata.get("hook_name_out"),
    }
    reshaped = config.get("reshape_activations", "none")
    rule = RULES.get(architecture)
    if architecture == "topk":
        rule = f"topk, k={fields.take_size('k')}"
    return [
        ("sizes", f"{d_in} -> {latents} latents -> {d_out}"),
        ("dtype", fields.take("dtype", str, "float32").removeprefix("torch.")),
        *([("selection", rule)] if rule is not None else []),
        *normalization_lines(config.get("normalize_activations"), scaling(folder, config)),
        *([("reshapes", str(reshaped))] if reshaped != "none" else []),
        *((label, name) for label, name in named.items() if isinstance(name, str)),
    ]


def normalization_lines(mode: Any, scaling: Scaling | None) -> list[tuple[str, str]]:
    """The line of `inspect` on how activations are scaled. Empty if they are not."""
    if scaling is not None:
        return [("normalization", scaling.in_words())]
    if mode in (None, "none"):
        return []
    if mode in (SCALED, WHITENED):
        return [("normalization", f"{mode}, without a file that holds it: activations as they are")]
    return [("normalization", f"{mode}, at run time")]


def _expected(architecture: str, sizes: tuple[int, int, int]) -> dict[str, tuple[int, ...]] | None:
    """The shape of each tensor by name. None for an architecture that only SAELens knows."""
    d_in, latents, d_out = sizes
    if architecture not in (*RULES, "topk") or architecture == "temporal":
        return None
    decoder = {"W_dec": (latents, d_out), "b_dec": (d_out,)}
    if architecture == "matching_pursuit":
        return decoder
    expected: dict[str, tuple[int, ...]] = {"W_enc": (d_in, latents), **decoder}
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


def _check_weights(path: Path, architecture: str, sizes: tuple[int, int, int]) -> None:
    expected = _expected(architecture, sizes)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if expected is not None:
                own = {key: shape for key, shape in found.items() if key not in _LEGACY_TENSORS}
                _compare(path, own, expected)
            for name in found if has_values(path) else ():
                if not file.get_tensor(name).isfinite().all():
                    raise CheckpointError(f"{path}: {name} holds values that are not finite.")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error


def _compare(
    path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    if found.keys() != expected.keys():
        raise CheckpointError(
            f"{path}: holds {sorted(found)} where its config asks for {sorted(expected)}."
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path}: {name} is {list(shape)} where its config asks for {list(expected[name])}."
            )


def _hosts(folder: Path, call: Callable[[], T]) -> T:
    """What SAELens returns. Any error that it raises becomes a CheckpointError."""
    try:
        return call()
    except CheckpointError:
        raise
    # SAELens can raise any error for an unexpected value.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: its host cannot have it: {type(error).__name__}: {error}"
        ) from error
