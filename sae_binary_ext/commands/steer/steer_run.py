"""`sae-binary steer`: generates text with latents changed, or measures random latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.HookedTransformer import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from sae_binary_ext.commands.circuit.circuit_run import tokens_of
from sae_binary_ext.commands.steer.config import SteerConfig
from sae_binary_ext.commands.steer.measured_page import measured_page
from sae_binary_ext.commands.steer.measuring import measure_latents
from sae_binary_ext.commands.steer.next_tokens import divergence, log_probabilities
from sae_binary_ext.commands.steer.steer_page import (
    ChangedLatent,
    Generated,
    SteeredText,
    steer_page,
)
from sae_binary_ext.measure.in_model import read_hooks
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.splice import HookedModel
from sae_binary_ext.steering import CodeChange, Steering
from sae_binary_ext.steering.code_change import OPERATIONS
from sae_binary_ext.steering.steering import code_difference

# How many of the likeliest next tokens to show.
SHOWN = 5


def run_steer(coders: list[str], config: SteerConfig) -> Analysis:
    """Generate text with latents of a coder changed, or measure latents of all coders.

    Arguments and errors as for analyse_coders. Also ValueError if a CodeChange refuses the latents,
    the rule or the strength; if there is no prompt, or several coders for one prompt; or if latents
    are named although random ones are measured.
    """
    if config.measure:
        _check_measuring(config)
        return analyse_coders(coders, config, measure_latents, measured_page)
    if config.prompt is None:
        raise ValueError("prompt=None: there is no text to continue. Give --prompt or --measure.")
    return analyse_coders(coders, config, _steered_text, steer_page)


def _check_measuring(config: SteerConfig) -> None:
    names = (*OPERATIONS, "where", "strength", "prompt")
    if given := [name for name in names if getattr(config, name)]:
        raise ValueError(
            f"measure={config.measure} with {', '.join(given)}: a measurement turns on random "
            "latents, and finds the strength of stock ones. Leave these out, or leave out measure."
        )


@dataclass(frozen=True)
class _Opened:
    """A model, a change of its coder, and the tokens of the prompt, int64 [1, context]."""

    opened: OpenedModel
    change: CodeChange
    prompt: Tensor


def _steered_text(opened: OpenedModel, config: SteerConfig) -> SteeredText:
    """Generate the text before and after."""
    if len(opened.candidates) > 1:
        names = ", ".join(each.name for each in opened.candidates)
        raise ValueError(
            f"coders: {names}. The latents are numbers of one coder, so give one; several at once "
            "take sae_binary_ext.steering.Steering, in Python."
        )
    (candidate,) = opened.candidates
    change = CodeChange(
        candidate.coder,
        config.set,
        config.clear,
        config.flip,
        config.where,
        config.first_position,
        config.strength,
        opened.hooks[candidate.site][0] if candidate.coder.cfg.metadata.hook_name is None else None,
    )
    ids = tokens_of(opened.tokenizer, str(config.prompt))
    given = _Opened(opened, change, torch.tensor([ids], device=candidate.coder.device))
    before = _generate(opened.model, given.prompt, config)
    with Steering(opened.model, change):
        after = _generate(opened.model, given.prompt, config)
        steered = log_probabilities(opened.model, before)[0]
    own = log_probabilities(opened.model, before)[0]
    last = len(ids) - 1
    moved = divergence(own[last:], steered[last:]).tolist()
    return SteeredText(
        str(config.prompt),
        len(ids),
        Generated("as it is", _text(given, before), _likeliest(given, own[last])),
        Generated("steered", _text(given, after), _likeliest(given, steered[last]), moved),
        _latents(given, before),
    )


def _generate(model: HookedModel, prompt: Tensor, config: SteerConfig) -> Tensor:
    """The prompt with its continuation, int64 [1, context], by the model's own generate."""
    sampled = {"do_sample": True, "temperature": config.temperature}
    settings: dict[str, Any] = sampled if config.temperature else {"do_sample": False}
    torch.manual_seed(config.seed)
    own: Any = model
    if isinstance(model, HookedTransformer | TransformerBridge):
        settings |= {"return_type": "tokens", "verbose": False}
        return own.generate(prompt, max_new_tokens=config.new_tokens, **settings)
    mask = torch.ones_like(prompt)
    return own.model.generate(
        prompt, attention_mask=mask, max_new_tokens=config.new_tokens, **settings
    )


def _text(given: _Opened, tokens: Tensor) -> str:
    """The text after the prompt."""
    new = tokens[0, given.prompt.shape[1] :].tolist()
    return str(given.opened.tokenizer.decode(new, skip_special_tokens=True))


def _likeliest(given: _Opened, log_probability: Tensor) -> list[tuple[str, float]]:
    """The likeliest tokens, with their probabilities, by log probabilities [vocabulary]."""
    best = log_probability.topk(SHOWN)
    texts = [str(given.opened.tokenizer.decode([token])) for token in best.indices.tolist()]
    return list(zip(texts, best.values.exp().tolist(), strict=True))


def _latents(given: _Opened, tokens: Tensor) -> list[ChangedLatent]:
    """For each latent that changes: on which share of the tokens it fires, and is changed."""
    opened, change = given.opened, given.change
    hook, _ = opened.hooks[opened.candidates[0].site]
    codes, _ = change.own.encode(read_hooks(opened.model, [hook], tokens)[hook][0])
    positions = torch.arange(len(codes), device=codes.device)
    counted = positions >= change.first_position
    changed = code_difference([change], codes, positions)[counted] != 0
    fired = codes[counted][:, list(change.latents)] != 0
    named = {latent: name for name in OPERATIONS for latent in getattr(change, name)}
    return [
        ChangedLatent(latent, named[latent], *shares)
        for latent, *shares in zip(
            change.latents,
            fired.float().mean(0).tolist(),
            changed.float().mean(0).tolist(),
            strict=True,
        )
    ]
