"""Latents turned on side by side are those that Steering turns on, and are scored as said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from sae_binary_ext.commands.steer import SteerConfig, measuring
from sae_binary_ext.commands.steer.measuring import CHOOSING, MEASURED, LiveLatents, PromptRun
from sae_binary_ext.commands.steer.next_tokens import divergence, log_probabilities
from sae_binary_ext.measure.candidates import at_common_sites, candidate_of
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.steering import CodeChange, Steering
from sae_binary_ext.steering.steered_coder import steered_coder
from tests.layer_coders import layer_coder
from tests.small_models import VOCABULARY
from tests.steering import models

LATENTS = torch.tensor([2, 3, 11, 30])
PROMPTS = torch.randint(2, VOCABULARY, (3, 32), generator=torch.Generator().manual_seed(1))


def transcoder(kind: str) -> Any:
    coder = layer_coder(kind, 1)
    coder.cfg.metadata.hook_name, coder.cfg.metadata.hook_name_out = (
        "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out",
    )  # fmt: skip
    return coder.requires_grad_(False)


CODERS: dict[str, Any] = {
    "binary": models.binary,
    "binary, layer_norm": lambda: models.binary(normalize_activations="layer_norm"),
    "topk": models.topk,
    "transcoder": lambda: transcoder("threshold"),
    "topk transcoder": lambda: transcoder("stock"),
}


def prompt_run(coder: Any, folder: Path, silent: int | None = None) -> PromptRun:
    model = models.bridge(folder)
    (candidate,), hooks = at_common_sites([candidate_of(coder, "it")], model)
    generator = torch.Generator().manual_seed(0)
    own, following = torch.randint(VOCABULARY, (2, 4, 5), generator=generator)
    own[0, 3:] = -1
    if silent is not None:
        following[silent] = -1
    live = LiveLatents(LATENTS, torch.tensor([1.0, 2, 3, 0.5]), own, following)
    opened: Any = SimpleNamespace(model=model, hooks=hooks)
    return PromptRun(opened, candidate, steered_coder(coder), live, PROMPTS, 1)


@pytest.mark.parametrize("case", CODERS)
def test_figures_are_those_of_steering(case: str, tiny_llama: Path):
    coder = CODERS[case]()
    run = prompt_run(coder, tiny_llama)
    model = models.bridge(tiny_llama)
    places, factor = torch.tensor([0, 2, 3]), 2.0
    values = run.strengths(places, factor)
    found = run.figures(places, values)
    stock = "topk" in case
    assert values.tolist() == ([2.0, 6.0, 1.0] if stock else [1.0] * 3)
    before = log_probabilities(model, PROMPTS, measuring.POSITIONS)
    for row, place, value in zip(found, places.tolist(), values.tolist(), strict=True):
        latent = int(LATENTS[place])
        strength = {"strength": value} if stock else {}
        with Steering(model, CodeChange(coder, set=[latent], **strength)):
            steered = log_probabilities(model, PROMPTS, measuring.POSITIONS)
        assert row[0].item() == pytest.approx(divergence(before, steered).mean().item(), rel=1e-3)

        def rise(tokens: Tensor, before: Tensor = before, steered: Tensor = steered) -> float:
            kept = tokens[tokens >= 0]
            shares = [each.exp()[..., kept].sum(-1).log() for each in (steered, before)]
            return (shares[0] - shares[1]).mean().item()

        for column, names in enumerate((run.live.own, run.live.following), 1):
            rises = [rise(tokens) for tokens in names]
            assert row[column].item() == pytest.approx(rises[place], rel=1e-3, abs=1e-5)
            others = (sum(rises) - rises[place]) / 3
            assert row[column + 2].item() == pytest.approx(others, rel=1e-3, abs=1e-5)


def test_a_latent_without_following_tokens_has_no_rise_of_them(tiny_llama: Path):
    torch.manual_seed(0)
    run = prompt_run(models.binary(), tiny_llama, silent=1)
    found = run.figures(torch.tensor([1, 2]), torch.ones(2))
    assert found[0].isnan().tolist() == [False, False, True, False, False]
    assert not found[1].isnan().any()
    # The other latents are the same as if this one had tokens.
    torch.manual_seed(0)
    whole = prompt_run(models.binary(), tiny_llama).figures(torch.tensor([1]), torch.ones(1))
    assert found[0, 4].item() == pytest.approx(whole[0, 4].item(), rel=1e-3)


def test_live_latents_are_drawn_alone():
    running = RunningLatents(6)
    codes = torch.zeros(12, 6)
    codes[:, [1, 4]] = 1
    codes[:9, 2] = 1  # fires too seldom
    running.add(codes)
    assert measuring._draw("it", running, SteerConfig(measure=5)).tolist() == [1, 4]
    draws = {
        int(measuring._draw("it", running, SteerConfig(measure=1, seed=seed))) for seed in range(20)
    }
    assert draws == {1, 4}
    with pytest.raises(ValueError, match="it: no latent fires on 10 of 0 tokens"):
        measuring._draw("it", RunningLatents(6), SteerConfig(measure=5))


def opened_text(folder: Path, texts: list[str]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return SimpleNamespace(tokenizer=tokenizer, documents=lambda: iter(texts))


def test_prompts_for_choosing_and_for_measuring_share_no_document(tiny_llama: Path):
    texts = [" ".join([f"w{10 + number}"] * 150) for number in range(6)]
    found = measuring._prompts(opened_text(tiny_llama, texts))
    words = {name: set(prompts[:, 1:].flatten().tolist()) for name, prompts in found.items()}
    assert words == {CHOOSING: {10, 12, 14}, MEASURED: {11, 13, 15}}
    assert {name: tuple(prompts.shape) for name, prompts in found.items()} == {
        CHOOSING: (4, 32), MEASURED: (8, 32),
    }  # fmt: skip
    with pytest.raises(
        ValueError, match="has 4 prompts of 32 tokens in a quarter of its documents"
    ):
        measuring._prompts(opened_text(tiny_llama, texts[:2]))
