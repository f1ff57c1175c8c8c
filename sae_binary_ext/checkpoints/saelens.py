"""SAELens' format: cfg.json and sae_weights.safetensors."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_binary_ext.checkpoints import stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import DTYPES, Fields, clearly, read_json, read_tensors
from sae_binary_ext.checkpoints.normalization import Scaling, folded, scaling_of
from sae_binary_ext.checkpoints.portable import Place, PortableCoder, Shape, notes_of, read_notes
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS = stock.WEIGHTS
# The name of each tensor in SAELens' files. W_enc is stored transposed.
PARAMETERS = {
    "encoder_weight": "W_enc", "encoder_bias": "b_enc", "decoder_weight": "W_dec",
    "decoder_bias": "b_dec", "log_threshold": "log_threshold", "skip_weight": "W_skip",
    "flip_price": "flip_price",
}  # fmt: skip
# Fields, beside k, that CodeRule and SAELens' configs of binary coders have.
RULE_FIELDS = {"selection": str, "surrogate": str, "surrogate_temperature": float}
PLACE_FIELDS = ("hook_name", "hook_name_out", "model_name")
# For each architecture: whether its codes are 0 or 1, whether it is a transcoder, and whether it
# refines codes. Only training checkpoints have binary_entropy, which becomes binary in other files.
ARCHITECTURES = {
    "binary": (True, False, False),
    "binary_entropy": (True, False, False),
    "binary_refined": (True, False, True),
    "binary_transcoder": (True, True, False),
    "topk": (False, False, False),
    "topk_transcoder": (False, True, False),
}
# Fields of training checkpoints that only training reads.
TRAINING_FIELDS = (
    "aux_loss_coefficient", "cost_of_bit", "covariance_coefficient", "covariance_sample",
    "dead_window_tokens",
    "decoder_init_norm",
    "dense_coefficient", "dense_rate", "encoder_trains_b_dec", "entropy_coefficient",
    "entropy_start_step", "entropy_warm_up_steps", "initial_firing_rate", "lr_decay_share",
    "pre_act_loss_coefficient", "refit_tokens", "skip_non_finite", "surrogate_latents",
    "training_passes", "use_sparse_activations",
)  # fmt: skip


def is_stock(folder: Path) -> bool:
    """Whether SAELens itself must load the folder's coder."""
    config = read_json(folder / "cfg.json")
    architecture = config.get("architecture")
    # SAELens translates the topk configs that it wrote before its version 6.
    old_topk = architecture == "topk" and stock.is_old(config)
    return old_topk or architecture not in tuple(ARCHITECTURES)


def read(folder: Path) -> PortableCoder:
    """Read the coder of a folder. The scale of a training checkpoint is folded into the weights."""
    path = folder / "cfg.json"
    if is_stock(folder):
        stock.refuse(stock.current_config(folder).get("architecture"), path)
        return from_coder(stock.load(folder))
    config = read_json(path)
    shape = _read_shape(config, path)
    sizes = {PARAMETERS[key]: size for key, size in shape.tensors().items()}
    sizes["W_enc"] = sizes["W_enc"][::-1]
    if shape.refine_passes:
        sizes["firing_rate"] = sizes["b_enc"]  # in training checkpoints
    found = read_tensors(folder / WEIGHTS, sizes, optional=("firing_rate",))
    stored = _in_dtype_of(config, found, path)
    coder = clearly(folder, lambda: _portable(shape, stored, config, path))
    if shape.normalize_activations == "none":
        return coder
    return folded(coder, _scaling(folder, shape))


def scaling(folder: Path) -> Scaling | None:
    """The scale that `read` folds into the weights of a training checkpoint, or None for others."""
    path = folder / "cfg.json"
    if is_stock(folder):
        return stock.scaling(folder, stock.current_config(folder))
    return _scaling(folder, _read_shape(read_json(path), path))


def _scaling(folder: Path, shape: Shape) -> Scaling | None:
    d_out = shape.d_out if shape.transcoder else None
    return scaling_of(folder, shape.normalize_activations, shape.d_in, d_out)


def _in_dtype_of(
    config: dict[str, Any], stored: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Cast all tensors but the thresholds to the config's dtype, as SAELens does."""
    name = Fields(config, path).take("dtype", str).removeprefix("torch.")
    dtype = next((one for one in DTYPES.values() if str(one) == f"torch.{name}"), None)
    if dtype is None or not all(tensor.dtype in DTYPES.values() for tensor in stored.values()):
        raise CheckpointError(
            f"{path}: dtype={name!r}, and W_enc is {stored['W_enc'].dtype}. Expected a floating "
            "dtype of 16, 32 or 64 bits."
        )
    return {key: one if key == "log_threshold" else one.to(dtype) for key, one in stored.items()}


def _portable(
    shape: Shape, stored: dict[str, Tensor], config: dict[str, Any], path: Path
) -> PortableCoder:
    """The portable coder of tensors that have SAELens' names."""
    metadata: dict[str, Any] = dict(Fields(config, path).take("metadata", dict, {}))
    place, rates, settings = read_notes(metadata.pop(NOTES_KEY, None))
    tensors = {key: stored[PARAMETERS[key]] for key in shape.tensors()}
    tensors["encoder_weight"] = tensors["encoder_weight"].T
    names = {key: metadata.get(key) for key in PLACE_FIELDS}
    for key, name in names.items():
        if not isinstance(name, str | None):
            raise CheckpointError(f"metadata.{key}={name!r}: expected text.")
    place = Place(place.hookpoint, **names)
    return PortableCoder(shape, tensors, place, rates, {**settings, "saelens": metadata})


def _read_shape(config: dict[str, Any], path: Path) -> Shape:
    if config.get("architecture") not in tuple(ARCHITECTURES):
        stock.refuse(config.get("architecture"), path)
    fields = Fields(config, path)
    binary, transcoder, refines = fields.take_choice("architecture", ARCHITECTURES)
    d_in = fields.take_size("d_in")
    rule = clearly(path, lambda: _read_rule(fields, binary))
    d_out = fields.take_size("d_out", d_in) if transcoder else d_in
    latents = fields.take_size("d_sae")
    skip = transcoder and fields.take("skip_connection", bool, False)
    centred = fields.take("apply_b_dec_to_input", bool)
    modes = fields.take("normalize_activations", str), fields.take("reshape_activations", str)
    rescales = not binary and fields.take("rescale_acts_by_decoder_norm", bool, False)
    passes = fields.take_size("refine_passes") if refines else 0
    fields.finish(ignored=("dtype", "device", "metadata", *TRAINING_FIELDS))
    if transcoder and centred:
        raise CheckpointError(
            f"{path}: apply_b_dec_to_input=True: expected False, as for every transcoder."
        )
    return Shape(
        d_in, d_out, latents, rule, binary, transcoder, skip, centred, *modes, rescales, passes
    )


def _read_rule(fields: Fields, binary: bool) -> CodeRule:
    k = fields.take_size("k")
    if not binary:
        return CodeRule("topk", k)
    told: dict[str, Any] = {name: fields.take(name, kind) for name, kind in RULE_FIELDS.items()}
    return CodeRule(k=k, **told)


def from_coder(coder: Any) -> PortableCoder:
    """The portable form of a SAELens coder. CheckpointError if no other format has it."""
    source = Path(f"<{type(coder).__name__}>")
    config = coder.cfg.to_dict()
    shape = _read_shape(config, source)
    stored = {PARAMETERS[key]: getattr(coder, PARAMETERS[key]).detach() for key in shape.tensors()}
    return _portable(shape, stored, config, source)


def to_coder(coder: PortableCoder) -> Any:
    """A SAELens coder for inference, on the CPU. CheckpointError if SAELens cannot store it."""
    import_module("sae_binary_ext.saelens")  # raises an error with advice without SAELens
    from sae_lens.registry import get_sae_class

    kind, config_kind = get_sae_class(_architecture(coder.shape))
    config = config_kind(**fields_of(coder))
    for key, value in metadata_of(coder).items():
        config.metadata[key] = value
    made = kind(config)
    state = {PARAMETERS[key]: tensor for key, tensor in coder.tensors.items()}
    made.load_state_dict({**state, "W_enc": state["W_enc"].T})  # copies the tensors
    return made


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as SAELens does."""
    to_coder(coder).save_model(folder)


def _architecture(shape: Shape) -> str:
    missing = {
        f"activation={shape.rule.selection!r}: SAELens has no such architecture.": (
            not shape.binary and shape.rule.selection != "topk"
        ),
        "skip_connection=True: SAELens has no autoencoder with a skip connection.": (
            shape.skip and not shape.transcoder
        ),
    }
    for reason, applies in missing.items():
        if applies:
            raise CheckpointError(f"{reason} Load the coder with host='sparsify'.")
    sought = (shape.binary, shape.transcoder, shape.refine_passes > 0)
    return next(name for name, found in ARCHITECTURES.items() if found == sought)


def fields_of(coder: PortableCoder) -> dict[str, Any]:
    """The fields of a config of SAELens, by name."""
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
        fields |= {name: getattr(rule, name) for name in RULE_FIELDS}
    else:
        fields["rescale_acts_by_decoder_norm"] = shape.rescales_by_decoder_norm
    if shape.refine_passes:
        fields["refine_passes"] = shape.refine_passes
    if shape.transcoder:
        fields |= {"d_out": shape.d_out, "skip_connection": shape.skip}
    return fields


def metadata_of(coder: PortableCoder) -> dict[str, Any]:
    """The coder's place, settings and firing rates for the metadata of SAELens' config."""
    named = {key: getattr(coder.place, key) for key in PLACE_FIELDS}
    told = {key: name for key, name in named.items() if name is not None}
    notes = notes_of(coder, "saelens")
    # SAELens' metadata has its own fields for the rest of the place.
    notes["place"] = {"hookpoint": coder.place.hookpoint} if coder.place.hookpoint else {}
    noted = notes["place"] or notes["settings"] or "firing_rates" in notes
    return {**coder.settings.get("saelens", {}), **told, **({NOTES_KEY: notes} if noted else {})}
