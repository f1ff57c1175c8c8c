"""SAELens' format: cfg.json and sae_weights.safetensors."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_binary_ext.checkpoints import stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import DTYPES, Fields, clearly, read_json, read_tensors
from sae_binary_ext.checkpoints.normalization import Scaling, folded, scaling_of
from sae_binary_ext.checkpoints.portable import (
    Place,
    PortableCoder,
    Shape,
    notes_of,
    read_notes,
)
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS = stock.WEIGHTS
# In SAELens' files, of each tensor its name, and whether it lies the other way round.
PARAMETERS = {
    "encoder_weight": ("W_enc", True),
    "encoder_bias": ("b_enc", False),
    "decoder_weight": ("W_dec", False),
    "decoder_bias": ("b_dec", False),
    "log_threshold": ("log_threshold", False),
    "skip_weight": ("W_skip", False),
}
# Codes are 0 or 1, and the coder is a transcoder. "binary_entropy" is how training saves a coder of
# "binary" in its checkpoints.
ARCHITECTURES = {
    "binary": (True, False),
    "binary_entropy": (True, False),
    "binary_transcoder": (True, True),
    "topk": (False, False),
    "topk_transcoder": (False, True),
}
# Fields that only training reads; they stand in its checkpoints.
TRAINING_FIELDS = (
    "aux_loss_coefficient",
    "covariance_coefficient",
    "covariance_sample",
    "decoder_init_norm",
    "dense_coefficient",
    "dense_rate",
    "encoder_trains_b_dec",
    "entropy_coefficient",
    "entropy_start_step",
    "entropy_warm_up_steps",
    "initial_firing_rate",
    "pre_act_loss_coefficient",
    "skip_non_finite",
    "surrogate_latents",
    "use_sparse_activations",
)


def is_stock(folder: Path) -> bool:
    """Whether the folder's coder is SAELens' own in its own words, which SAELens itself loads."""
    config = read_json(folder / "cfg.json")
    architecture = config.get("architecture")
    if architecture == "topk":
        # Before its version 6 SAELens wrote other fields, which SAELens itself translates.
        return stock.is_old(config)
    return architecture not in tuple(ARCHITECTURES)


def is_portable(folder: Path) -> bool:
    """Whether the folder's coder is of an architecture that other formats may have too."""
    return stock.current_config(folder).get("architecture") in tuple(ARCHITECTURES)


def read(folder: Path) -> PortableCoder:
    """The coder of a folder; the scale of a training checkpoint is folded in.

    Raises:
        CheckpointError: something is missing, damaged, or of an architecture without a portable
            form.
    """
    path = folder / "cfg.json"
    if is_stock(folder):
        stock.refuse(stock.current_config(folder).get("architecture"), path)
        return from_coder(stock.load(folder))
    config = read_json(path)
    shape = _read_shape(config, path)
    metadata = _metadata(config, path)
    names = {name: PARAMETERS[name] for name in shape.tensors()}
    stored = read_tensors(
        folder / WEIGHTS,
        {
            name: size[::-1] if names[key][1] else size
            for key, size in shape.tensors().items()
            for name in [names[key][0]]
        },
    )
    stored = _as_config_says(stored, config, path)
    tensors = {
        key: stored[name].T if turned else stored[name] for key, (name, turned) in names.items()
    }
    coder = clearly(folder, lambda: _portable(shape, tensors, metadata))
    return folded(coder, _scaling(folder, shape))


def scaling(folder: Path) -> Scaling | None:
    """The scale of a training checkpoint, which read folds in; None of any other coder.

    Raises:
        CheckpointError: as read.
    """
    path = folder / "cfg.json"
    if is_stock(folder):
        return stock.scaling(folder, stock.current_config(folder))
    return _scaling(folder, _read_shape(read_json(path), path))


def _scaling(folder: Path, shape: Shape) -> Scaling | None:
    d_out = shape.d_out if shape.transcoder else None
    return scaling_of(folder, shape.normalize_activations, shape.d_in, d_out)


def _as_config_says(
    stored: dict[str, Tensor], config: dict[str, Any], path: Path
) -> dict[str, Tensor]:
    """Tensors in the config's dtype, as SAELens casts them; thresholds stay as they are."""
    name = Fields(config, path).take("dtype", str).removeprefix("torch.")
    dtype = next((one for one in DTYPES.values() if str(one) == f"torch.{name}"), None)
    if dtype is None or not all(tensor.dtype in DTYPES.values() for tensor in stored.values()):
        raise CheckpointError(
            f"{path}: dtype={name!r}, and W_enc is {stored['W_enc'].dtype}: expected floating "
            "numbers of 16, 32 or 64 bits."
        )
    kept = ("log_threshold",)
    return {key: one if key in kept else one.to(dtype) for key, one in stored.items()}


def _portable(shape: Shape, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> PortableCoder:
    place, rates, settings = read_notes(metadata.pop(NOTES_KEY, None))
    names = {key: metadata.get(key) for key in ("hook_name", "hook_name_out", "model_name")}
    for key, name in names.items():
        if not isinstance(name, str | None):
            raise CheckpointError(f"metadata.{key}={name!r}: expected text.")
    return PortableCoder(
        shape,
        tensors,
        Place(hookpoint=place.hookpoint, **names),
        rates,
        {**settings, "saelens": metadata},
    )


def _read_shape(config: dict[str, Any], path: Path) -> Shape:
    stock.refuse(config.get("architecture"), path)
    fields = Fields(config, path)
    binary, transcoder = fields.take_choice("architecture", ARCHITECTURES)
    d_in = fields.take_size("d_in")
    if binary:
        rule = clearly(
            path,
            lambda: CodeRule(
                fields.take("selection", str),
                fields.take_size("k"),
                fields.take("surrogate", str),
                fields.take("surrogate_temperature", float),
            ),
        )
    else:
        rule = CodeRule("topk", fields.take_size("k"))
    shape = Shape(
        d_in=d_in,
        d_out=fields.take_size("d_out", d_in) if transcoder else d_in,
        latents=fields.take_size("d_sae"),
        rule=rule,
        binary=binary,
        transcoder=transcoder,
        skip=fields.take("skip_connection", bool, False) if transcoder else False,
        subtracts_decoder_bias=fields.take("apply_b_dec_to_input", bool),
        normalize_activations=fields.take("normalize_activations", str),
        reshape_activations=fields.take("reshape_activations", str),
        rescales_by_decoder_norm=(
            False if binary else fields.take("rescale_acts_by_decoder_norm", bool, False)
        ),
    )
    fields.finish(ignored=("dtype", "device", "metadata", *TRAINING_FIELDS))
    if transcoder and shape.subtracts_decoder_bias:
        raise CheckpointError(f"{path}: apply_b_dec_to_input=True: a transcoder's is False.")
    return shape


def _metadata(config: dict[str, Any], path: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = Fields(config, path).take("metadata", dict, {})
    return dict(metadata)


def from_coder(coder: Any) -> PortableCoder:
    """A SAELens coder's portable form.

    Args:
        coder: of one of ARCHITECTURES.

    Raises:
        CheckpointError: of another architecture.
    """
    source = Path(f"<{type(coder).__name__}>")
    config = coder.cfg.to_dict()
    shape = _read_shape(config, source)
    tensors = {
        key: (tensor.T if turned else tensor).detach()
        for key in shape.tensors()
        for name, turned in [PARAMETERS[key]]
        for tensor in [getattr(coder, name)]
    }
    return _portable(shape, tensors, _metadata(config, source))


def to_coder(coder: PortableCoder) -> Any:
    """A SAELens coder for inference, on the CPU.

    Raises:
        CheckpointError: SAELens has no architecture for it.
        ModuleNotFoundError: SAELens is not installed.
    """
    import_module("sae_binary_ext.saelens")  # says what to install where SAELens is missing
    made = _coder_class(coder.shape)(_config(coder))
    state = {
        name: tensor.T if turned else tensor
        for key, tensor in coder.tensors.items()
        for name, turned in [PARAMETERS[key]]
    }
    made.load_state_dict(state)  # which copies
    return made


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as SAELens does."""
    to_coder(coder).save_model(folder)


def _coder_class(shape: Shape) -> Any:
    from sae_lens.saes.topk_sae import TopKSAE

    from sae_binary_ext.saelens import BinarySAE, BinaryTranscoder, TopKTranscoder

    if not shape.binary and shape.rule.selection != "topk":
        raise CheckpointError(
            f"activation={shape.rule.selection!r}: SAELens has no such architecture. Load "
            "the coder with host='sparsify'."
        )
    if shape.skip and not shape.transcoder:
        raise CheckpointError(
            "skip_connection=True: SAELens has autoencoders without a skip connection only."
        )
    if shape.transcoder:
        return BinaryTranscoder if shape.binary else TopKTranscoder
    return BinarySAE if shape.binary else TopKSAE


def _config(coder: PortableCoder) -> Any:
    from sae_lens.saes.topk_sae import TopKSAEConfig

    from sae_binary_ext.saelens import BinarySAEConfig, BinaryTranscoderConfig, TopKTranscoderConfig

    shape, rule = coder.shape, coder.shape.rule
    fields: dict[str, Any] = {
        "d_in": shape.d_in,
        "d_sae": shape.latents,
        "k": rule.k,
        "dtype": str(coder.dtype).removeprefix("torch."),
        "apply_b_dec_to_input": shape.subtracts_decoder_bias,
        "normalize_activations": shape.normalize_activations,
        "reshape_activations": shape.reshape_activations,
    }
    if shape.binary:
        fields |= {
            "selection": rule.selection,
            "surrogate": rule.surrogate,
            "surrogate_temperature": rule.surrogate_temperature,
        }
    else:
        fields["rescale_acts_by_decoder_norm"] = shape.rescales_by_decoder_norm
    if shape.transcoder:
        fields |= {"d_out": shape.d_out, "skip_connection": shape.skip}
        kind: Any = BinaryTranscoderConfig if shape.binary else TopKTranscoderConfig
    else:
        kind = BinarySAEConfig if shape.binary else TopKSAEConfig
    config = kind(**fields)
    _fill_metadata(config.metadata, coder)
    return config


def _fill_metadata(metadata: Any, coder: PortableCoder) -> None:
    for key, value in coder.settings.get("saelens", {}).items():
        metadata[key] = value
    for key in ("hook_name", "hook_name_out", "model_name"):
        if (name := getattr(coder.place, key)) is not None:
            metadata[key] = name
    notes = notes_of(coder)
    notes["settings"] = {key: value for key, value in coder.settings.items() if key != "saelens"}
    # SAELens' metadata has fields of its own for the rest of the place.
    notes["place"] = {"hookpoint": coder.place.hookpoint} if coder.place.hookpoint else {}
    if notes["place"] or notes["settings"] or "firing_rates" in notes:
        metadata[NOTES_KEY] = notes
