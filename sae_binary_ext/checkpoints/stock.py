"""SAELens' own architectures, and its files of before version 6: what SAELens itself loads."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, has_values, read_json
from sae_binary_ext.checkpoints.normalization import (
    WHITENED,
    Scaling,
    scaling_of,
    whitening_of_host,
)

WEIGHTS = "sae_weights.safetensors"
# Which latents fire, for architectures that no other format can tell.
RULES = {
    "abstopk": "the k largest pre-activations in absolute value, with their sign",
    "batchtopk": "the k largest pre-activations a token on average over a batch",
    "gated": "pre-activations of one encoder, gated by another's",
    "jumprelu": "pre-activations above a threshold of each latent",
    "jumprelu_skip_transcoder": "pre-activations above a threshold of each latent",
    "jumprelu_transcoder": "pre-activations above a threshold of each latent",
    "matching_pursuit": "latents picked one after another from the residual",
    "matryoshka_batchtopk": "the k largest pre-activations a token on average over a batch",
    "skip_transcoder": "every positive pre-activation (ReLU)",
    "standard": "every positive pre-activation (ReLU)",
    "temporal": "latents that see earlier tokens too",
    "transcoder": "every positive pre-activation (ReLU)",
}
# SAELens loads these for training alone, and writes another architecture for inference.
TRAINING_ONLY = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}

_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_THRESHOLD = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_SKIPS = ("skip_transcoder", "jumprelu_skip_transcoder")
# Left in old files beside a coder's own tensors.
_FINETUNED = "finetuning_scaling_factor"
_LEGACY_TENSORS = ("scaling_factor", _FINETUNED)

T = TypeVar("T")
# What files of SAELens before its version 6 may be activated by, for SAELens 6 to compute it.
OLD_ACTIVATIONS = ("relu", "topk", "jumprelu")


def is_old(config: dict[str, Any]) -> bool:
    """Whether a config of a stock architecture is of SAELens before its version 6."""
    return "metadata" not in config


def current_config(folder: Path) -> dict[str, Any]:
    """A config in the words of SAELens 6, which translates older ones itself.

    Raises:
        CheckpointError: the file is damaged, or SAELens cannot translate it.
        ModuleNotFoundError: the config is old and SAELens is not installed.
    """
    path = folder / "cfg.json"
    config = read_json(path)
    architecture = config.get("architecture")
    if not is_old(config) or architecture not in (None, "topk", *RULES):
        return config
    if architecture in TRAINING_ONLY:
        return config
    _check_old_activation(config, path)
    import_module("sae_binary_ext.saelens")  # says what to install where SAELens is missing
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    return _hosts(folder, lambda: handle_config_defaulting(config))


def _check_old_activation(config: dict[str, Any], path: Path) -> None:
    # SAELens 6 drops this field, and would compute ReLU or topk in its place.
    name = config.get("activation_fn_str", config.get("activation_fn"))
    if name not in (None, *OLD_ACTIVATIONS):
        raise CheckpointError(
            f"{path}: activation_fn={name!r}: SAELens 6 has coders of {OLD_ACTIVATIONS} alone, and "
            "would give other codes without a word. Use it in the SAELens that wrote it: "
            "pip install 'sae-lens<6'."
        )


def in_words(architecture: str) -> str:
    """What kind of coder it is."""
    if architecture in TRAINING_ONLY:
        return f"{architecture}, a training checkpoint that save_inference_model makes loadable"
    if architecture == "topk":
        return "TopK autoencoder, in a file of SAELens before version 6"
    return f"{architecture}, of SAELens alone"


def refuse(architecture: Any, source: Path) -> None:
    """Raise CheckpointError, with the reason, where only SAELens has an architecture."""
    if not isinstance(architecture, str):
        return
    if architecture in TRAINING_ONLY:
        raise training_only(architecture, source)
    if architecture in RULES:
        raise CheckpointError(
            f"{source}: architecture={architecture!r} ({RULES[architecture]}): no other format has "
            "such coders. Use it in SAELens: load_coder(..., host='saelens')."
        )


def refuse_training_only(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for a training checkpoint that no loader takes."""
    architecture = config.get("architecture")
    if isinstance(architecture, str) and architecture in TRAINING_ONLY:
        raise training_only(architecture, folder)


def training_only(architecture: str, source: Path) -> CheckpointError:
    """The error for a training checkpoint that SAELens does not load for inference either."""
    folder = source.parent if source.suffix else source
    found = scaling(folder, read_json(folder / "cfg.json")) if folder.is_dir() else None
    return CheckpointError(
        f"{source}: architecture={architecture!r}: a training checkpoint, which SAELens loads for "
        f"training alone. Write the {TRAINING_ONLY[architecture]} coder that it becomes, and load "
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
    """A coder as SAELens' own loader has it, the scale of a training checkpoint folded in.

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
    """The scale of a stock coder's training checkpoint, which load folds in."""
    d_in = Fields(config, folder / "cfg.json").take_size("d_in")
    return scaling_of(folder, config.get("normalize_activations"), d_in)


def _fold_into(coder: Any, scaling: Scaling, folder: Path) -> None:
    try:
        if scaling.whitening is None:
            coder.fold_activation_norm_scaling_factor(scaling.input)
        else:
            coder.fold_activation_whitening(**whitening_of_host(scaling.whitening))
    except NotImplementedError as error:
        raise CheckpointError(
            f"{folder}: trained on activations that {scaling.file} scales, which SAELens cannot "
            f"fold into architecture={coder.cfg.architecture()!r}: {error}. Scale the activations "
            "yourself, and load the coder with sae_lens.SAE.load_from_disk."
        ) from error


def lines(folder: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What `inspect` shows of a coder that SAELens alone has, each with its label.

    Args:
        folder: of the coder; its weights are checked against its config.
        config: of current_config.

    Raises:
        CheckpointError: tensors are missing, of other sizes, or not finite.
    """
    fields = Fields(config, folder / "cfg.json")
    architecture = fields.take("architecture", str)
    d_in, latents = fields.take_size("d_in"), fields.take_size("d_sae")
    d_out = fields.take_size("d_out", d_in) if architecture in _TRANSCODERS else d_in
    _check_weights(folder / WEIGHTS, architecture, (d_in, latents, d_out))
    metadata = fields.take("metadata", dict, {})
    named = {
        "model": metadata.get("model_name"),
        "hook (SAELens)": metadata.get("hook_name"),
        "output hook (SAELens)": metadata.get("hook_name_out"),
    }
    reshaped = config.get("reshape_activations", "none")
    return [
        ("sizes", f"{d_in} -> {latents} latents -> {d_out}"),
        ("dtype", fields.take("dtype", str, "float32").removeprefix("torch.")),
        *_selection(architecture, fields),
        *normalization_lines(config.get("normalize_activations"), scaling(folder, config)),
        *([("reshapes", str(reshaped))] if reshaped != "none" else []),
        *((label, name) for label, name in named.items() if isinstance(name, str)),
    ]


def _selection(architecture: str, fields: Fields) -> list[tuple[str, str]]:
    if architecture == "topk":
        return [("selection", f"topk, k={fields.take_size('k')}")]
    return [("selection", RULES[architecture])] if architecture in RULES else []


def normalization_lines(mode: Any, scaling: Scaling | None) -> list[tuple[str, str]]:
    """The line of `inspect` on what happens to activations before they are encoded, if anything."""
    if scaling is not None:
        return [("normalization", scaling.in_words())]
    if mode in (None, "none"):
        return []
    if mode in ("expected_average_only_in", WHITENED):
        return [("normalization", f"{mode}, without a file that holds it: activations as they are")]
    return [("normalization", f"{mode}, at run time")]


def _expected(architecture: str, sizes: tuple[int, int, int]) -> dict[str, tuple[int, ...]] | None:
    """Shape of each tensor by name; None where SAELens alone knows."""
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
    if architecture in _THRESHOLD:
        expected["threshold"] = (latents,)
    if architecture in _SKIPS:
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
                _compare(path, {**found}, expected)
            for name in found if has_values(path) else ():
                _check_finite(path, name, file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error


def _compare(
    path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    for name in _LEGACY_TENSORS:
        found.pop(name, None)
    if found.keys() != expected.keys():
        raise CheckpointError(
            f"{path}: holds {sorted(found)} where its config asks for {sorted(expected)}."
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path}: {name} is {list(shape)} where its config asks for {list(expected[name])}."
            )


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: {name} holds values that are not finite.")


def _hosts(folder: Path, call: Callable[[], T]) -> T:
    try:
        return call()
    except CheckpointError:
        raise
    # A host raises whatever an unexpected value leads to.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: its host cannot have it: {type(error).__name__}: {error}"
        ) from error
