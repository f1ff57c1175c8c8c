"""Transcoders of one host as transcoders of the other, binary and TopK.

Both hosts write the same parameters, sparsify's encoder transposed. What the other host's config
has no field for is kept in SAELens' metadata, so that the way back restores it.
"""

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.util import dtype_to_str
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.config import (
    SELECTION_OF_ACTIVATION,
    SURROGATE_OF_STE,
    BinarySparseCoderConfig,
)

ACTIVATION_OF_SELECTION = {value: key for key, value in SELECTION_OF_ACTIVATION.items()}
STE_OF_SURROGATE = {value: key for key, value in SURROGATE_OF_STE.items()}
# In SAELens' metadata: sparsify's whole config, and its running firing rates.
CONFIG_KEY = "sparsify_config"
RATES_KEY = "sparsify_firing_rates"


@torch.no_grad()
def transcoder_to_saelens(
    coder: SparseCoder, hook_name: str, hook_name_out: str
) -> BinaryTranscoder | TopKTranscoder:
    """A transcoder trained in sparsify, as SAELens has it.

    Args:
        coder: with transcode on and activation topk or a binary one.
        hook_name: where SAELens reads its input.
        hook_name_out: where SAELens puts its output.

    Returns:
        A coder of its own, with the same codes and outputs wherever rounding does not decide who
        fires.

    Raises:
        ValueError: an autoencoder, an activation without a SAELens architecture, or no decoder.
    """
    config = coder.cfg
    if not config.transcode:
        raise ValueError(
            "transcode=False: this coder is an autoencoder, and a transcoder is asked for."
        )
    if coder.W_dec is None:
        raise ValueError("decoder=False: this coder was loaded without what it predicts with.")
    widths: dict[str, Any] = {
        "d_in": coder.d_in,
        "d_out": coder.d_in,
        "d_sae": coder.num_latents,
        "skip_connection": coder.W_skip is not None,
        "dtype": dtype_to_str(coder.dtype),
    }
    tensors = {
        "W_enc": coder.encoder.weight.T,
        "b_enc": coder.encoder.bias,
        "W_dec": coder.W_dec,
        "b_dec": coder.b_dec,
    }
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
    made: BinaryTranscoder | TopKTranscoder
    if isinstance(coder, BinarySparseCoder):
        rule = coder.rule
        made = BinaryTranscoder(
            BinaryTranscoderConfig(
                **widths,
                selection=rule.selection,
                k=rule.k,
                surrogate=rule.surrogate,
                surrogate_temperature=rule.surrogate_temperature,
            )
        )
        tensors["log_threshold"] = coder.log_threshold
        made.cfg.metadata[RATES_KEY] = coder.firing_rates.tolist()
    elif config.activation == "topk":
        made = TopKTranscoder(TopKTranscoderConfig(**widths, k=config.k))
    else:
        raise ValueError(
            f"activation={config.activation!r}: SAELens has no such architecture. topk and the "
            f"binary ones, {sorted(SELECTION_OF_ACTIVATION)}, can be converted."
        )
    _fill(made, tensors)
    made.cfg.metadata[CONFIG_KEY] = config.to_dict()
    made.cfg.metadata.hook_name = hook_name
    made.cfg.metadata.hook_name_out = hook_name_out
    return made


@torch.no_grad()
def transcoder_to_sparsify(coder: BinaryTranscoder | TopKTranscoder) -> SparseCoder:
    """A transcoder trained in SAELens, as sparsify has it.

    Args:
        coder: as SAE.load_from_disk returns it.

    Returns:
        A coder of its own, with the same codes and outputs wherever rounding does not decide who
        fires. save_to_disk writes it; delphi looks for folders named by hookpoint.

    Raises:
        ValueError: an output of another width than the input, inputs that are normalised, or TopK
            values rescaled by decoder norms. sparsify has no place for either.
    """
    config = coder.cfg
    if config.d_out != config.d_in:
        raise ValueError(
            f"d_out={config.d_out} and d_in={config.d_in}: sparsify's transcoders have one width."
        )
    if config.normalize_activations != "none":
        raise ValueError(
            f"normalize_activations={config.normalize_activations!r}: sparsify's coders take raw "
            "activations. Scalings that SAELens folds into the weights when training ends are fine."
        )
    kept = config.metadata.get(CONFIG_KEY)
    sizes: dict[str, Any] = {
        "num_latents": config.d_sae,
        "k": config.k,
        "transcode": True,
        "skip_connection": config.skip_connection,
    }
    tensors = {
        "encoder.weight": coder.W_enc.T,
        "encoder.bias": coder.b_enc,
        "W_dec": coder.W_dec,
        "b_dec": coder.b_dec,
    }
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
    rates: list[float] | None = config.metadata.get(RATES_KEY)
    if isinstance(coder, BinaryTranscoder):
        rule = coder.rule
        sizes["activation"] = ACTIVATION_OF_SELECTION[rule.selection]
        sizes["ste"] = STE_OF_SURROGATE[rule.surrogate]
        sizes["ste_temperature"] = rule.surrogate_temperature
        new = BinarySparseCoderConfig(**sizes)
        tensors["log_threshold"] = coder.log_threshold
        if rates is not None:
            tensors["firing_rates"] = torch.tensor(rates, dtype=torch.float64)
    else:
        norms = coder.W_dec.norm(dim=-1)
        one = norms.new_ones(())
        if coder.cfg.rescale_acts_by_decoder_norm and not torch.allclose(norms, one):
            raise ValueError(
                "rescale_acts_by_decoder_norm=True: sparsify has no such rescaling. Convert what "
                "save_inference_model wrote, which has the norms folded in."
            )
        new = SparseCoderConfig(**sizes)
    made = SparseCoder(config.d_in, _restored(new, kept), dtype=coder.dtype)
    _fill(made, tensors)
    return made


def _restored(new: SparseCoderConfig, kept: dict[str, Any] | None) -> SparseCoderConfig:
    """The config that a coder came with, where it still describes it."""
    if kept is None:
        return new
    before = type(new).from_dict(kept)
    before.num_latents = before.num_latents or new.num_latents
    same = all(
        getattr(before, name) == getattr(new, name)
        for name in ("num_latents", "k", "activation", "transcode", "skip_connection")
    )
    return type(new).from_dict(kept) if same else new


def _fill(coder: SAE[Any] | SparseCoder, tensors: dict[str, Tensor]) -> None:
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    coder.load_state_dict(copies)
