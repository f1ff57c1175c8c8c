"""sparsify's format: cfg.json and sae.safetensors. The first paper's format adds a few fields.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_binary_ext.checkpoints import runs
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, clearly, read_json, read_tensors
from sae_binary_ext.checkpoints.portable import PortableCoder, Shape, notes_of, read_notes
from sae_binary_ext.checks import check_choice
from sae_binary_ext.coding import paper_names
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.saving import NOTES_KEY

WEIGHTS = "sae.safetensors"
PARAMETERS = {
    "encoder_weight": "encoder.weight", "encoder_bias": "encoder.bias", "decoder_weight": "W_dec",
    "decoder_bias": "b_dec", "log_threshold": "log_threshold", "skip_weight": "W_skip",
    "flip_price": "flip_price",
}  # fmt: skip
RATES, THRESHOLD = "firing_rates", "log_threshold"
# A coder with tied_decoder has one weight under both names.
TIED = ("encoder.weight", "W_dec")
QUIRKE2025 = "quirke2025"
SOURCE = "https://github.com/EleutherAI/sparsify"
NO_HOST = "SAELens and sparsify cannot load it. Load it with the code that wrote it"
# Effects of fields of sparsify's forks. sparsify itself loads coders that have all of them off.
OF_FORKS = {
    "batch_topk": "the k largest latents a token on average over a batch",
    "sample_topk": "the k largest latents a token on average over a row",
    "input_unit_norm": "inputs scaled to unit norm",
}
# Fields of cross-layer transcoders.
OF_CLT = {
    "n_targets", "n_sources", "normalize_io", "divide_cross_layer", "train_post_encoder",
    "post_encoder_scale", "coalesce_topk", "topk_coalesced",
}  # fmt: skip
# Further fields of the first paper's files, which do not change what a coder computes.
IDLE_FIELDS: dict[str, Any] = {
    "expansion_factor": 32, "normalize_decoder": False, "multi_topk": False,
    paper_names.PAPER_IDLE_FIELD: 5,
}  # fmt: skip
# Fields of sparsify and of this package that only training reads.
_NUMBER = (float, int)
TRAINING_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("covariance_alpha", "dense_alpha", "dense_rate", "entropy_alpha"), _NUMBER),
    "cost_of_bit": _NUMBER,
    **dict.fromkeys(("covariance_sample", "training_passes"), (int,)),
    **dict.fromkeys(
        ("dead_window_tokens", "entropy_start_step", "entropy_warm_up_steps", "refit_tokens"),
        (int, type(None)),
    ),
    **dict.fromkeys(
        ("encoder_trains_b_dec", "matryoshka", "multi_topk", "skip_non_finite"), (bool,)
    ),
    paper_names.PAPER_IDLE_FIELD: (int,),
    "initial_firing_rate": (*_NUMBER, type(None)),
    "normalize_decoder": (bool, type(None)),
    "ste_latents": (str, type(None)),
}


def is_papers(config: dict[str, Any]) -> bool:
    """Whether the first paper's code wrote a config, whose earliest form adds no field."""
    binary = config.get("activation") in list(paper_names.SELECTION_OF_ACTIVATION)
    named = binary or not paper_names.PAPER_FIELDS.keys().isdisjoint(config)
    return named and "subtract_b_dec" not in config


def read(folder: Path) -> PortableCoder:
    """Read the coder of a folder. CheckpointError if it is damaged or has no portable form."""
    path = folder / "cfg.json"
    own, run = read_json(path), runs.run_config(folder)
    config = runs.completed(own, run, path)
    shape = _read_shape(config, path)
    sizes = {PARAMETERS[key]: size for key, size in shape.tensors().items()}
    optional: tuple[str, ...] = ()
    if shape.binary:
        # The first paper's files have no firing rates.
        sizes[RATES], optional = (shape.latents,), (RATES, THRESHOLD)
    tied = bool(config.get("tied_decoder", False))
    stored = read_tensors(folder / WEIGHTS, sizes, (*optional, *TIED * tied))
    if tied:
        _untie(stored, folder / WEIGHTS)
    if shape.binary and THRESHOLD not in stored:
        stored[THRESHOLD] = _absent_threshold(shape, stored, folder / WEIGHTS)
    coder = clearly(folder, lambda: _portable(shape, stored, config))
    centred = shape.transcoder and runs.is_of_2024(own, run)
    return runs.with_centring_folded(coder) if centred else coder


def _untie(stored: dict[str, Tensor], path: Path) -> None:
    """Store the weight of a tied coder under both names, because its file may have one of them."""
    found = [stored[name] for name in TIED if name in stored]
    if not found or not (found[0].is_meta or torch.equal(found[0], found[-1])):
        told = "holds neither" if not found else "they differ"
        raise CheckpointError(
            f"{path}: tied_decoder=True says that {TIED[0]} and {TIED[1]} are one weight, but "
            f"{told}. Set tied_decoder to false if they are two."
        )
    # Two tensors, because safetensors writes no tensor under two names.
    stored.update({TIED[0]: found[0], TIED[1]: found[0].clone()})


def _absent_threshold(shape: Shape, stored: dict[str, Tensor], path: Path) -> Tensor:
    """Logarithms of thresholds of zero, for a selection whose files have no thresholds."""
    if shape.rule.kind.has_thresholds:
        raise CheckpointError(
            f"{path}: holds no {THRESHOLD}. The paper's first coders (commit 474acfb of "
            "EleutherAI/sparsify) have none. With topk_binary a latent fires above 1. If "
            f"yours is one of them, add {THRESHOLD} with {shape.latents} zeros to the file: zero "
            "is the logarithm of 1."
        )
    dtype = torch.promote_types(stored[PARAMETERS["encoder_weight"]].dtype, torch.float32)
    return torch.full((shape.latents,), -torch.inf, dtype=dtype)


def _portable(shape: Shape, stored: dict[str, Tensor], config: dict[str, Any]) -> PortableCoder:
    place, rates, settings = read_notes(config.get(NOTES_KEY))
    rest = {key: value for key, value in config.items() if key not in (NOTES_KEY, "d_in")}
    settings = {**settings, QUIRKE2025 if is_papers(config) else "sparsify": rest}
    tensors = {key: stored[PARAMETERS[key]] for key in shape.tensors()}
    return PortableCoder(shape, tensors, place, stored.get(RATES, rates), settings)


def _read_shape(config: dict[str, Any], path: Path) -> Shape:
    fields = Fields(config, path)
    activation = fields.take("activation", str, "topk")
    clearly(path, lambda: _refuse_variants(fields, activation))
    rule = clearly(path, lambda: _read_rule(fields, activation))
    d_in = fields.take_size("d_in")
    expansion = fields.take_size("expansion_factor", 32)
    latents = fields.take("num_latents", int, 0) or d_in * expansion
    transcoder = fields.take("transcode", bool, False)
    skip = fields.take("skip_connection", bool, False)
    binary = activation in paper_names.SELECTION_OF_ACTIVATION
    # The first paper's files lack this field.
    subtracts = fields.take("subtract_b_dec", bool, not binary or rule.kind.subtracts_b_dec)
    # Configs of runs have a 0 if codes are not refined.
    passes = fields.take_size("refine_passes") if binary and config.get("refine_passes") else 0
    fields.skip("refine_passes", (int,))
    _refuse_forks(config, path)
    for name, kinds in TRAINING_FIELDS.items():
        fields.skip(name, kinds)
    if not binary:
        # The first paper's code writes these fields for every coder.
        fields.skip("ste", (str,))
        fields.skip("ste_temperature", _NUMBER)
    fields.finish(ignored=(NOTES_KEY, paper_names.PAPER_IDLE_FIELD, *OF_FORKS))
    centred = subtracts and not transcoder
    sizes = (d_in, d_in, latents)
    return Shape(*sizes, rule, binary, transcoder, skip, centred, refine_passes=passes)


def _refuse_variants(fields: Fields, activation: str) -> None:
    """Raise CheckpointError for the first paper's coders that compute something else."""
    fields.skip("tied_decoder", (bool,))
    if fields.skip("ste_thresh_est", (bool,)) and activation == "topk_binary":
        raise CheckpointError(
            "ste_thresh_est: a coder of EleutherAI/sparsify's branch binary-threshold. There the k "
            "picked latents are 1 even below their thresholds; here a latent is 1 only above its "
            "threshold. Load it with that branch. Coders of branch binary load here."
        )


def _refuse_forks(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for a config of a fork whose coders compute something else."""
    if found := sorted(OF_CLT & config.keys()):
        raise CheckpointError(
            f"{path}: has {', '.join(found)}: a cross-layer transcoder of sparsify's branch clt. "
            f"{NO_HOST}: pip install git+{SOURCE}@clt, then "
            "sparsify.SparseCoder.load_from_disk(folder)."
        )
    if found := [f"{name} ({what})" for name, what in OF_FORKS.items() if config.get(name)]:
        fork = f"a fork of sparsify with {'; '.join(found)}"
        raise CheckpointError(f"{path}: is of {fork}. {NO_HOST}.")


def _read_rule(fields: Fields, activation: str) -> CodeRule:
    k = fields.take_size("k", 32)
    if activation in paper_names.STOCK_ACTIVATIONS:
        if fields.take("signed", bool, False):
            raise CheckpointError(
                f"signed=True: its codes may be negative. {NO_HOST}: pip install git+{SOURCE}"
                "@signed, then sae.Sae.load_from_disk(folder)."
            )
        return CodeRule(activation, k)
    check_choice(paper_names.ACTIVATIONS, activation=activation)
    surrogate = fields.take_choice("ste", paper_names.SURROGATE_OF_STE, "sigmoid")
    temperature = fields.take("ste_temperature", float, 2.0)
    return CodeRule(paper_names.SELECTION_OF_ACTIVATION[activation], k, surrogate, temperature)


def from_coder(coder: Any) -> PortableCoder:
    """The portable form of a SparseCoder. CheckpointError if it was loaded without its decoder."""
    if coder.W_dec is None:
        raise CheckpointError(
            "decoder=False: this coder was loaded without its decoder. Load it with decoder=True."
        )
    config = {**coder.cfg.to_dict(), "d_in": coder.d_in}
    shape = _read_shape(config, Path(f"<{type(coder).__name__}>"))
    return _portable(shape, coder.state_dict(), config)


def to_coder(coder: PortableCoder) -> Any:
    """A SparseCoder, on the CPU. CheckpointError if sparsify cannot store one of its settings."""
    import_module("sae_binary_ext.sparsify")  # raises an error with advice without sparsify
    from sparsify import SparseCoder

    made = SparseCoder(coder.shape.d_in, _config(coder), dtype=coder.dtype)
    state = {PARAMETERS[key]: tensor for key, tensor in coder.tensors.items()}
    if coder.firing_rates is not None and coder.shape.binary:
        state[RATES] = coder.firing_rates
    made.load_state_dict(state)  # copies the tensors
    return made


def for_inference(coder: PortableCoder) -> Any:
    """Like to_coder, with multi_topk off, because it makes sparsify return 4k latents' output."""
    made = to_coder(coder)
    made.cfg.multi_topk = False
    return made


def write(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as sparsify does."""
    to_coder(coder).save_to_disk(folder)
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    notes = notes_of(coder, "sparsify")
    if coder.shape.binary:
        notes.pop(RATES, None)  # the weights file holds the firing rates
    path.write_text(json.dumps({**config, NOTES_KEY: notes}))


def write_quirke2025(coder: PortableCoder, folder: Path) -> None:
    """Save a coder as the first paper's code does. CheckpointError if its files cannot store it."""
    shape = coder.shape
    _refuse_inexpressible(shape)
    if shape.refine_passes:
        raise CheckpointError(
            f"refine_passes={shape.refine_passes}: coders of the first paper look at an input "
            "once. Choose sparsify, whose format stores refined coders."
        )
    if not shape.binary:
        raise CheckpointError(
            f"activation={shape.rule.selection!r}: the first paper's files hold binary coders. "
            "Choose sparsify, whose format stores coders with values."
        )
    subtracts = shape.rule.kind.subtracts_b_dec and not shape.transcoder
    if shape.subtracts_decoder_bias != subtracts:
        raise CheckpointError(
            f"subtract_b_dec={shape.subtracts_decoder_bias} with selection "
            f"{shape.rule.selection!r}: the first paper's files have no such field. Its "
            "autoencoders subtract b_dec from their input, except those of activation 'binary'. "
            "Choose sparsify, whose format stores the field."
        )
    before = coder.settings.get(QUIRKE2025, {})
    fields = {**IDLE_FIELDS, **{key: before[key] for key in IDLE_FIELDS if key in before}}
    fields |= {key: value for key, value in _fields_of(shape).items() if key != "subtract_b_dec"}
    if before.get("num_latents") == 0:
        fields["num_latents"] = 0
    notes = notes_of(coder, QUIRKE2025)
    fields |= {**paper_names.PAPER_FIELDS, "d_in": shape.d_in, NOTES_KEY: notes}
    stored = dict(coder.tensors)
    if not shape.rule.kind.has_thresholds and (stored[THRESHOLD] == -torch.inf).all():
        del stored[THRESHOLD]  # the first paper's files have no thresholds of 0
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PARAMETERS[key]: one.contiguous() for key, one in stored.items()}, folder / WEIGHTS)
    (folder / "cfg.json").write_text(json.dumps(fields))


def _refuse_inexpressible(shape: Shape) -> None:
    """Raise CheckpointError if sparsify's coders cannot compute what this shape says."""
    d_in, d_out = shape.d_in, shape.d_out
    normalizes, reshapes = shape.normalize_activations, shape.reshape_activations
    centred = shape.subtracts_decoder_bias or shape.binary or shape.transcoder
    reasons = {
        f"d_out={d_out} and d_in={d_in}: sparsify's coders have one width.": d_out != d_in,
        f"normalize_activations={normalizes!r}: sparsify's coders take raw activations. Scalings "
        "that SAELens folds into the weights when training ends are fine.": normalizes != "none",
        f"reshape_activations={reshapes!r}: sparsify's coders do not reshape.": reshapes != "none",
        "apply_b_dec_to_input=False: sparsify's TopK autoencoders subtract b_dec.": not centred,
    }
    for reason, applies in reasons.items():
        if applies:
            raise CheckpointError(f"{reason} Keep the coder in SAELens' format.")


def _config(coder: PortableCoder) -> Any:
    from sparsify import SparseCoderConfig

    from sae_binary_ext.sparsify import BinarySparseCoderConfig
    from sae_binary_ext.sparsify.config import NOT_REFINED

    _refuse_inexpressible(coder.shape)
    fields = _fields_of(coder.shape)
    before = coder.settings.get("sparsify", coder.settings.get(QUIRKE2025, {}))
    kept = {key: before[key] for key in (*TRAINING_FIELDS, "expansion_factor") if key in before}
    if not coder.shape.binary:
        for name in ("matryoshka", paper_names.PAPER_IDLE_FIELD):
            kept.pop(name, None)
    else:
        weights = coder.tensors["encoder_weight"], coder.tensors["decoder_weight"]
        fields["tied_decoder"] = bool(before.get("tied_decoder")) and torch.equal(*weights)
        # The first paper trained with normalize_decoder. Binary coders here keep their rows.
        kept.pop("normalize_decoder", None)
    if coder.shape.refine_passes:
        # The codes were refined after a training with these losses.
        kept = {key: value for key, value in kept.items() if key not in NOT_REFINED}
    if before.get("num_latents") == 0:
        fields.pop("num_latents")  # expansion_factor gives the number of latents
    if coder.shape.transcoder and "subtract_b_dec" in before:
        fields["subtract_b_dec"] = before["subtract_b_dec"]
    kind = BinarySparseCoderConfig if coder.shape.binary else SparseCoderConfig
    return clearly(Path("<sparsify>"), lambda: kind.from_dict({**kept, **fields}))


def _fields_of(shape: Shape) -> dict[str, Any]:
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
        # A transcoder ignores subtract_b_dec, so it gets the default, True.
        fields |= {
            "ste": SURROGATES[rule.surrogate].ste,
            "ste_temperature": rule.surrogate_temperature,
            "subtract_b_dec": shape.subtracts_decoder_bias or shape.transcoder,
        }
    if shape.refine_passes:
        fields["refine_passes"] = shape.refine_passes
    return fields
