"""Coders as circuit-tracer's transcoders, one for each layer of a model.

circuit-tracer draws a graph of the latents that lead to a model's next token. An edge is the change
of a latent's pre-activation that a source causes by itself. A binary latent fires by its margin,
its pre-activation less a constant, so an edge is a contribution to its margin.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# pyright: reportUntypedBaseClass=false, reportGeneralTypeIssues=false
# (circuit-tracer is not installed where types are checked.)

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from torch import Tensor, nn
from typing_extensions import override

from sae_binary_ext.checkpoints import CheckpointError, hook_names
from sae_binary_ext.checkpoints.load import NOT_WRITTEN
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.coding.encode import binarise
from sae_binary_ext.measure.in_model import BLOCK, layer_of
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.transcoder import SkipConnection, TopKTranscoder


class CodeStep(nn.Module):
    """The step from pre-activations to codes, both [..., latents], of a binary coder."""

    def __init__(self, coder: BinaryCoder) -> None:
        super().__init__()
        self.rule = coder.rule
        self.log_threshold = nn.Buffer(coder.log_threshold.detach())

    @override
    def forward(self, pre: Tensor) -> Tensor:
        # circuit-tracer casts buffers to its dtype, so the threshold is rounded as the coder's is.
        threshold = self.log_threshold.to(torch.promote_types(pre.dtype, torch.float32))
        return binarise(pre, threshold, self.rule, noise=False)


class CoderTranscoder(SingleLayerTranscoder):
    """circuit-tracer's transcoder of one layer, with the tensors and codes of a SAELens coder."""

    def __init__(self, coder: Any, layer: int) -> None:
        binary = isinstance(coder, BinaryCoder)
        super().__init__(
            coder.cfg.d_in,
            coder.cfg.d_sae,
            CodeStep(coder) if binary else coder.activation_fn,
            layer,
            skip_connection=coder.W_skip is not None,
            device=torch.device("meta"),
        )
        tensors = {name: value.detach() for name, value in coder.named_parameters()}
        tensors["W_enc"] = tensors["W_enc"].T
        for name, _ in list(self.named_parameters(recurse=False)):
            setattr(self, name, nn.Parameter(tensors[name], requires_grad=False))

    @override
    def to_safetensors(self, save_path: str) -> None:
        """Raise CheckpointError: circuit-tracer's loader would give other outputs."""
        raise CheckpointError(f"{save_path}: {NOT_WRITTEN['circuit-tracer']}")


def transcoder_set(
    coders: Iterable[Any], scan: str | None = None, family: str = ""
) -> TranscoderSet:
    """circuit-tracer's TranscoderSet of coders, one for each layer of a model, in any order.

    Args:
        coders: SAELens coders of this package, as load_coder gives them: BinaryTranscoder or
            TopKTranscoder. The set shares their tensors.
        scan: circuit-tracer's name of the set, by which its page finds texts of latents.
        family: the kind of model (llama). Needed if the coders' hooks are modules of transformers'
            models, and the model's name in their files does not contain it.

    Raises:
        ValueError: a coder is of another kind or normalises its input; a layer has no coder or
            several; or the coders differ in hooks, number of latents or skip connection.
    """
    found = sorted(
        ((_layer_of(coder, family), coder) for coder in coders), key=lambda each: each[0]
    )
    times = Counter(layer for layer, _ in found)
    wrong = {layer: times[layer] for layer in range(max(times, default=0) + 1) if times[layer] != 1}
    if wrong:
        raise ValueError(
            f"coders: the layers {sorted(wrong)} have {sorted(set(wrong.values()))} coders. Give "
            "one transcoder for each layer of the model, from layer 0 on."
        )
    kinds = {layer: _kind(coder, family) for layer, coder in found}
    if others := {layer: kind for layer, kind in kinds.items() if kind != kinds[0]}:
        layer, kind = next(iter(others.items()))
        raise ValueError(
            f"coders: layer {layer} has {kind} and layer 0 has {kinds[0]} (input hook, output "
            "hook, latents, skip_connection). Train all layers alike."
        )
    source, target, *_ = kinds[0]
    layers = {layer: CoderTranscoder(coder, layer) for layer, coder in found}
    return TranscoderSet(layers, source, target, scan)


def _layer_of(coder: Any, family: str) -> int:
    """The layer of a coder; ValueError if circuit-tracer cannot express the coder."""
    name = f"{type(coder).__name__} of {coder.cfg.metadata.hook_name}"
    if not isinstance(coder, BinaryCoder | TopKTranscoder) or not isinstance(coder, SkipConnection):
        raise ValueError(
            f"{name}: circuit-tracer takes transcoders, and here those of the architectures "
            "binary_transcoder and topk_transcoder. It loads ReLU and JumpReLU transcoders itself."
        )
    if coder.cfg.normalize_activations != "none":
        raise ValueError(
            f"{name}: normalize_activations={coder.cfg.normalize_activations!r}. circuit-tracer "
            "gives transcoders their input as the model has it. Train with 'none', or with "
            "'expected_average_only_in', which SAELens folds into the weights."
        )
    if getattr(coder.cfg, "rescale_acts_by_decoder_norm", False):
        raise ValueError(
            f"{name}: rescale_acts_by_decoder_norm=True: its pre-activations are scaled before the "
            "largest are chosen. Convert it first (sae-binary convert SOURCE OUT --host sparsify), "
            "which folds the norms into the weights."
        )
    return layer_of(_hooks(coder, family)[0])


def _kind(coder: Any, family: str) -> tuple[str, str, int, bool]:
    """The hooks within a layer, the number of latents, and whether there is a skip connection."""
    source, target = (
        BLOCK.sub("", hook, count=1).removeprefix(".") for hook in _hooks(coder, family)
    )
    return source, target, coder.cfg.d_sae, coder.cfg.skip_connection


def _hooks(coder: Any, family: str) -> tuple[str, str]:
    """TransformerLens' names of a coder's input and output."""
    metadata = coder.cfg.metadata
    model_name = f"{metadata.model_name} {family}"
    place = Place(None, metadata.hook_name, metadata.hook_name_out, model_name)
    if metadata.hook_name is None or metadata.hook_name_out is None:
        raise ValueError(
            f"hook_name={metadata.hook_name!r}, hook_name_out={metadata.hook_name_out!r}: a coder "
            "does not say which layer it belongs to. Set both in coder.cfg.metadata."
        )
    if hook_names.model_class_of(metadata.hook_name) is not None:
        # A module of transformers' models. sparsify's name of it leads to TransformerLens' name.
        hookpoint = hook_names.place_in_sparsify(place, transcoder=True).hookpoint
        place = Place(hookpoint=hookpoint, model_name=model_name)
        place = hook_names.place_in_saelens(place, transcoder=True)
    return str(place.hook_name), str(place.hook_name_out)
