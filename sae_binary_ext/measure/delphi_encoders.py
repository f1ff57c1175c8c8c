"""Coders of any format as delphi's LatentCache takes them: an encode function a module."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_binary_ext.checkpoints.hook_names import place_in_sparsify
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.measure.candidates import Candidate, check_alike
from sae_binary_ext.measure.in_model import codes_of
from sae_binary_ext.measure.models import settings_of_model


@dataclass(frozen=True)
class HookpointEncoders:
    """What LatentCache is given beside the model.

    Attributes:
        encoders: of each module of the model, by its name there, a function of its output, or of
            its input where they are transcoders: float [rows, context, d_in] to the codes,
            float32 [rows, context, latents], on the module's device.
        transcode: whether the functions take the modules' inputs.
    """

    encoders: dict[str, Callable[[Tensor], Tensor]]
    transcode: bool


def hookpoint_encoders(
    candidates: Iterable[Candidate], model: PreTrainedModel
) -> HookpointEncoders:
    """The encode functions of coders, by the modules of a Hugging Face model.

    SAELens' hook names are translated to modules by checkpoints.HOOK_NAMES; what enters a block is
    what the block before gives.

    Args:
        candidates: autoencoders or transcoders, of load_candidates.
        model: the bare model (AutoModel) or one with a head (AutoModelForCausalLM).

    Raises:
        CheckpointError: no module is known to give what a coder reads.
        ValueError: there are no coders, autoencoders beside transcoders, two at one module, one of
            a model that was processed when loaded, or the model lacks the module.
    """
    candidates = list(candidates)
    check_alike(candidates)
    transcode = candidates[0].is_transcoder
    encoders: dict[str, Callable[[Tensor], Tensor]] = {}
    for candidate in candidates:
        if settings := settings_of_model(candidate):
            told = ", ".join(f"{key}={value}" for key, value in settings.items())
            raise ValueError(
                f"{candidate.name}: its files say to load the model with {told}, and delphi reads "
                "the model as Hugging Face has it. Use sae-binary interpret, which follows them."
            )
        module = _module_of(candidate, model)
        if module in encoders:
            raise ValueError(
                f"{candidate.name}: another coder belongs at {module}, too, and delphi keeps one a "
                "module. Cache them one after the other."
            )
        encoders[module] = _encoder(candidate)
    return HookpointEncoders(encoders, transcode)


def _module_of(candidate: Candidate, model: PreTrainedModel) -> str:
    site = candidate.site
    # How the model is built; its name would have to be guessed from, and files may not tell it.
    kind = model.config.model_type
    place = Place(hook_name=site.hook_name, hook_name_out=site.hook_name_out, model_name=kind)
    hookpoint = place_in_sparsify(place, candidate.is_transcoder).hookpoint
    names = [name for name, _ in model.named_modules()]
    # Below a head the bare model has a name of its own: model.layers.9, transformer.h.9.
    found = [name for name in names if name == hookpoint or name.endswith(f".{hookpoint}")]
    if len(found) != 1:
        raise ValueError(
            f"{candidate.name}: belongs at {hookpoint}, and the model has "
            f"{'no such module' if not found else f'several: {found}'}."
        )
    return found[0]


def _encoder(candidate: Candidate) -> Callable[[Tensor], Tensor]:
    coder = candidate.coder

    @torch.no_grad()
    def encode(activations: Tensor) -> Tensor:
        if activations.shape[-1] != coder.cfg.d_in:
            raise ValueError(
                f"{candidate.name}: takes {coder.cfg.d_in} dimensions, and the module gives "
                f"{activations.shape[-1]}. It was trained on another model or hook."
            )
        everywhere = torch.ones(activations.shape[:-1], dtype=torch.bool, device=activations.device)
        codes = codes_of(coder, activations, everywhere).to(activations.device, torch.float32)
        return codes.unflatten(0, activations.shape[:-1])

    return encode
