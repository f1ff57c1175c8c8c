"""Makes encode functions of coders of any format, for delphi's LatentCache."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_binary_ext.checkpoints.hook_names import place_in_sparsify
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.measure.candidates import Candidate, check_alike, settings_of_model, told
from sae_binary_ext.measure.in_model import codes_of


@dataclass(frozen=True)
class HookpointEncoders:
    """Arguments of LatentCache.

    Attributes:
        encoders: by the name of a module, a function from its activations [rows, context, d_in] to
            codes, float32 [rows, context, latents], on the same device.
        transcode: whether the functions take the modules' inputs; otherwise they take their
            outputs.
    """

    encoders: dict[str, Callable[[Tensor], Tensor]]
    transcode: bool


def hookpoint_encoders(
    candidates: Iterable[Candidate], model: PreTrainedModel
) -> HookpointEncoders:
    """Encode functions of coders, by the names of modules of a Hugging Face model.

    SAELens' hook names are translated to modules by checkpoints.HOOK_NAMES. A coder of a block's
    input reads the output of the block before it.

    Args:
        candidates: autoencoders or transcoders, from load_candidates.
        model: the bare model (AutoModel) or one with a head (AutoModelForCausalLM).

    Raises:
        CheckpointError: no module is known for a coder's hook.
        ValueError: there are no coders, autoencoders and transcoders are mixed, two coders have the
            same module, a coder's model was processed when loaded, or the model lacks a module.
    """
    candidates = list(candidates)
    check_alike(candidates)
    encoders: dict[str, Callable[[Tensor], Tensor]] = {}
    for candidate in candidates:
        if settings := settings_of_model(candidate):
            raise ValueError(
                f"{candidate.name}: its files say to load the model with {told(settings)}, and "
                "delphi reads the model as Hugging Face has it. Use sae-binary interpret, which "
                "loads it as the files say."
            )
        module = _module_of(candidate, model)
        if module in encoders:
            raise ValueError(
                f"{candidate.name}: another coder also belongs at {module}, and delphi takes one "
                "coder for each module. Cache them one after the other."
            )
        encoders[module] = partial(_encode, candidate)
    return HookpointEncoders(encoders, candidates[0].is_transcoder)


def _module_of(candidate: Candidate, model: PreTrainedModel) -> str:
    # Module names depend on the model's type. The coder's files may not name the model.
    site, kind = candidate.site, model.config.model_type
    place = Place(hook_name=site.hook_name, hook_name_out=site.hook_name_out, model_name=kind)
    hookpoint = place_in_sparsify(place, candidate.is_transcoder).hookpoint
    # If the model has a head, its modules have a prefix: model.layers.9.
    found = [name for name, _ in model.named_modules() if f".{name}".endswith(f".{hookpoint}")]
    if len(found) != 1:
        raise ValueError(
            f"{candidate.name}: belongs at {hookpoint}, and the model has "
            f"{f'several: {found}' if found else 'no such module'}."
        )
    return found[0]


@torch.no_grad()
def _encode(candidate: Candidate, activations: Tensor) -> Tensor:
    width, rows = candidate.coder.cfg.d_in, activations.shape[:-1]
    if activations.shape[-1] != width:
        raise ValueError(
            f"{candidate.name}: takes {width} dimensions, and the module gives "
            f"{activations.shape[-1]}. It was trained on another model or hook."
        )
    everywhere = torch.ones(rows, dtype=torch.bool, device=activations.device)
    codes = codes_of(candidate.coder, activations, everywhere)
    return codes.to(activations.device, torch.float32).unflatten(0, rows)
