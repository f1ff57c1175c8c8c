"""sparsify's format: cfg.json and sae.safetensors. The first paper's files are such files, too.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, clearly, read_json, read_tensors
from sae_binary_ext.checkpoints.portable import (
    PortableCoder,
    Shape,
    notes_of,
    read_notes,
)
from sae_binary_ext.checkpoints.runs import (
    centres_transcoders,
    completed,
    run_config,
    with_centring_folded,
)
from sae_binary_ext.checkpoints.sparsify_forks import OF_FORKS, SIGNED, refuse_forks
from sae_binary_ext.checks import check_choice
from sae_binary_ext.coding.paper_names import (
    ACTIVATIONS,
    PAPER_FIELDS,
    PAPER_IDLE_FIELD,
    SELECTION_OF_ACTIVATION,
    STOCK_ACTIVATIONS,
    SURROGATE_OF_STE,
)
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS = "sae.safetensors"
PARAMETERS = {
    "encoder_weight": "encoder.weight",
    "encoder_bias": "encoder.bias",
    "decoder_weight": "W_dec",
    "decoder_bias": "b_dec",
    "log_threshold": "log_threshold",
    "skip_weight": "W_skip",
}
RATES, THRESHOLD = "firing_rates", "log_threshold"
# Fields of sparsify and of this package that only training reads.
TRAINING_FIELDS: dict[str, tuple[type, ...]] = {
    "covariance_alpha": (float, int),
    "covariance_sample": (int,),
    "dense_alpha": (float, int),
    "dense_rate": (float, int),
    "encoder_trains_b_dec": (bool,),
    "entropy_alpha": (float, int),
    "entropy_start_step": (int,),
    "entropy_warm_up_steps": (int,),
    "initial_firing_rate": (float, int, type(None)),
    "multi_topk": (bool,),
    "normalize_decoder": (bool, type(None)),
    "skip_non_finite": (bool,),
    "ste_latents": (str, type(None)),
}


def is_papers(config: dict[str, Any]) -> bool:
    """Whether a config is one of the first paper's own.

    Those of its earliest coders have no field that sparsify's have not.
    """
    binary = config.get("activation") in list(SELECTION_OF_ACTIVATION)
    named = binary or not PAPER_FIELDS.keys().isdisjoint(config)
    return named and "subtract_b_dec" not in config


def read(folder: Path) -> PortableCoder:
    """The coder of a folder, which is named by its hookpoint unless the config says where it is.

    Raises:
        CheckpointError: something is missing or damaged, or the activation has no portable form.
    """
    path = folder / "cfg.json"
    own, run = read_json(path), run_config(folder)
    config = completed(own, run, path)
    shape = _read_shape(config, path)
    sizes = {PARAMETERS[key]: size for key, size in shape.tensors().items()}
    optional: tuple[str, ...] = ()
    if shape.binary:
        # The first paper's files know no running rates.
        sizes[RATES], optional = (shape.latents,), (RATES, THRESHOLD)
    stored = read_tensors(folder / WEIGHTS, sizes, optional)
    if shape.binary and THRESHOLD not in stored:
        stored[THRESHOLD] = _absent_threshold(shape, stored, folder / WEIGHTS)
    coder = clearly(folder, lambda: _portable(shape, stored, config))
    if shape.transcoder and centres_transcoders(own, run):
        return with_centring_folded(coder)
    return coder


def _absent_threshold(shape: Shape, stored: dict[str, Tensor], path: Path) -> Tensor:
    """Thresholds of zero for a selection whose files in the first paper hold none."""
    if shape.rule.kind.has_thresholds:
        raise CheckpointError(
            f"{path}: holds no {THRESHOLD}. The paper's first coders (commit 474acfb of "
            "EleutherAI/sparsify) have none: with topk_binary a latent fires above 1, and no later "
            f"coder does. If yours is one of them, add {THRESHOLD} to the file, "
            f"{shape.latents} zeros, which are the logarithms of 1."
        )
    dtype = torch.promote_types(stored[PARAMETERS["encoder_weight"]].dtype, torch.float32)
    return torch.full((shape.latents,), -torch.inf, dtype=dtype)


def _portable(shape: Shape, stored: dict[str, Tensor], config: dict[str, Any]) -> PortableCoder:
    place, kept_rates, settings = read_notes(config.get(NOTES_KEY))
    rest = {key: value for key, value in config.items() if key not in (NOTES_KEY, "d_in")}
    format_name = "quirke2025" if is_papers(config) else "sparsify"
    return PortableCoder(
        shape,
        {key: stored[PARAMETERS[key]] for key in shape.tensors()},
        place,
        stored.get(RATES, kept_rates),
        {**settings, format_name: rest},
    )


def _read_shape(config: dict[str, Any], path: Path) -> Shape:
    fields = Fields(config, path)
    activation = fields.take("activation", str, "topk")
    clearly(path, lambda: _refuse_variants(fields, activation))
    rule = clearly(path, lambda: _read_rule(fields, activation))
    d_in = fields.take_size("d_in")
    expansion = fields.take_size("expansion_factor", 32)
    latents = fields.take("num_latents", int, 0)
    transcoder = fields.take("transcode", bool, False)
    # The first paper's files do not say.
    binary = activation in SELECTION_OF_ACTIVATION
    subtracts = fields.take("subtract_b_dec", bool, not binary or rule.kind.subtracts_b_dec)
    refuse_forks(config, path)
    shape = Shape(
        d_in=d_in,
        d_out=d_in,
        latents=latents or d_in * expansion,
        rule=rule,
        binary=binary,
        transcoder=transcoder,
        skip=fields.take("skip_connection", bool, False),
        subtracts_decoder_bias=subtracts and not transcoder,
    )
    for name, kinds in TRAINING_FIELDS.items():
        fields.skip(name, kinds)
    if activation in STOCK_ACTIVATIONS:
        # The paper's branch writes them of every coder.
        fields.skip("ste", (str,))
        fields.skip("ste_temperature", (float, int))
    fields.finish(ignored=(NOTES_KEY, PAPER_IDLE_FIELD, *OF_FORKS))
    return shape


def _refuse_variants(fields: Fields, activation: str) -> None:
    """Raise CheckpointError for coders of the paper's branches that compute something else."""
    if fields.take("tied_decoder", bool, False):
        raise CheckpointError(
            "tied_decoder=True: the decoder is the encoder's weight, and the file holds one of the "
            "two. Store it under both names, encoder.weight and W_dec, and set tied_decoder to "
            "false: codes and outputs stay the same."
        )
    # It changed the training loss alone: codes and outputs are those of a plain coder.
    fields.skip("matryoshka", (bool,))
    if fields.holds("ste_thresh_est") and activation == "topk_binary":
        raise CheckpointError(
            "ste_thresh_est: a coder of EleutherAI/sparsify's branch binary-threshold, whose k "
            "picked latents are 1 below their thresholds too; here a latent is 1 above its "
            "threshold alone. That branch loads it; coders of branch binary load here."
        )
    fields.skip("ste_thresh_est", (bool,))


def _read_rule(fields: Fields, activation: str) -> CodeRule:
    k = fields.take_size("k", 32)
    if activation in STOCK_ACTIVATIONS:
        if fields.take("signed", bool, False):
            raise CheckpointError(SIGNED)
        return CodeRule(activation, k)
    check_choice(ACTIVATIONS, activation=activation)
    surrogate = fields.take_choice("ste", SURROGATE_OF_STE, "sigmoid")
    temperature = fields.take("ste_temperature", float, 2.0)
    return CodeRule(SELECTION_OF_ACTIVATION[activation], k, surrogate, temperature)


def from_coder(coder: Any) -> PortableCoder:
    """A sparsify coder's portable form.

    Args:
        coder: a SparseCoder of any activation.

    Raises:
        CheckpointError: a coder loaded without its decoder.
    """
    if coder.W_dec is None:
        raise CheckpointError("decoder=False: this coder was loaded without its decoder.")
    config = {**coder.cfg.to_dict(), "d_in": coder.d_in}
    shape = _read_shape(config, Path(f"<{type(coder).__name__}>"))
    return _portable(shape, coder.state_dict(), config)


def to_coder(coder: PortableCoder) -> Any:
    """A sparsify coder, on the CPU.

    Raises:
        CheckpointError: sparsify has no place for something of the coder; the message names it.
        ModuleNotFoundError: sparsify is not installed.
    """
    import_module("sae_binary_ext.sparsify")  # says what to install where sparsify is missing
    from sparsify import SparseCoder

    made = SparseCoder(coder.shape.d_in, _config(coder), dtype=coder.dtype)
    state = {PARAMETERS[key]: tensor for key, tensor in coder.tensors.items()}
    if coder.firing_rates is not None and coder.shape.binary:
        state[RATES] = coder.firing_rates
    made.load_state_dict(state)  # which copies
    return made


def for_inference(coder: PortableCoder) -> Any:
    """As to_coder, without multi_topk.

    With it sparsify's forward pass returns the 4k largest latents' reconstruction, which is there
    for a second training loss, as its own.
    """
    made = to_coder(coder)
    made.cfg.multi_topk = False
    return made


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as sparsify does."""
    to_coder(coder).save_to_disk(folder)
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    notes = notes_of(coder)
    notes["settings"] = {key: value for key, value in coder.settings.items() if key != "sparsify"}
    if coder.shape.binary:
        # They stand among the tensors.
        notes.pop(RATES, None)
    path.write_text(json.dumps({**config, NOTES_KEY: notes}))


def refuse_inexpressible(shape: Shape) -> None:
    """Raise CheckpointError where sparsify's coders have no place for something."""
    if shape.d_out != shape.d_in:
        raise CheckpointError(
            f"d_out={shape.d_out} and d_in={shape.d_in}: sparsify's coders have one width."
        )
    if shape.normalize_activations != "none":
        raise CheckpointError(
            f"normalize_activations={shape.normalize_activations!r}: sparsify's coders take raw "
            "activations. Scalings that SAELens folds into the weights when training ends are fine."
        )
    if shape.reshape_activations != "none":
        raise CheckpointError(
            f"reshape_activations={shape.reshape_activations!r}: sparsify's coders take "
            "activations as they are."
        )
    if not shape.transcoder and not shape.binary and not shape.subtracts_decoder_bias:
        raise CheckpointError(
            "apply_b_dec_to_input=False: sparsify's TopK autoencoders always subtract b_dec."
        )


def _config(coder: PortableCoder) -> Any:
    refuse_inexpressible(coder.shape)
    fields = fields_of(coder.shape)
    before = coder.settings.get("sparsify", coder.settings.get("quirke2025", {}))
    restored = (*TRAINING_FIELDS, "expansion_factor")
    kept = {key: value for key, value in before.items() if key in restored}
    if coder.shape.binary:
        # How the first paper's coders were trained. Nothing rescales a binary coder's rows here.
        kept.pop("normalize_decoder", None)
    if before.get("num_latents") == 0:
        # Its latents are given by expansion_factor.
        fields.pop("num_latents")
    if coder.shape.transcoder and "subtract_b_dec" in before:
        fields["subtract_b_dec"] = before["subtract_b_dec"]
    return clearly(Path("<sparsify>"), lambda: _config_class(coder.shape)({**kept, **fields}))


def fields_of(shape: Shape) -> dict[str, Any]:
    """The fields of a config that say what a coder computes."""
    rule = shape.rule
    fields: dict[str, Any] = {
        "num_latents": shape.latents,
        "k": rule.k,
        "transcode": shape.transcoder,
        "skip_connection": shape.skip,
        "activation": rule.kind.activation if shape.binary else rule.selection,
    }
    if shape.binary:
        fields["ste"] = SURROGATES[rule.surrogate].ste
        fields["ste_temperature"] = rule.surrogate_temperature
        # A transcoder subtracts nothing, whatever this says; True is the default.
        fields["subtract_b_dec"] = shape.subtracts_decoder_bias or shape.transcoder
    return fields


def _config_class(shape: Shape) -> Any:
    from sparsify import SparseCoderConfig

    from sae_binary_ext.sparsify import BinarySparseCoderConfig

    return BinarySparseCoderConfig.from_dict if shape.binary else SparseCoderConfig.from_dict
