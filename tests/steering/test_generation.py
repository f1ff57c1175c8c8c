"""Steering in generation: with and without a cache, with padding, and from a position on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.steering import CodeChange, Steering
from sae_binary_ext.steering.positions import positions_of
from tests.layer_coders import hooked_llama
from tests.steering import models
from tests.steering.models import MODELS, MODULE, TOKENS, kept, outputs_of

NEW = 12
PAD = 1


def generated(model: Any, tokens: Tensor, *, cached: bool) -> Tensor:
    """Tokens with NEW more, by greedy generation of the model's own generate."""
    if hasattr(model, "generate") and hasattr(model, "hook_dict"):
        return model.generate(
            tokens, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False,
            use_past_kv_cache=cached, return_type="tokens",
        )  # fmt: skip
    return model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, min_new_tokens=NEW,
        do_sample=False, use_cache=cached, pad_token_id=PAD,
    )  # fmt: skip


CHANGES: dict[str, dict[str, Any]] = {
    "everywhere": {"set": [1, 5], "flip": [3], "first_position": 0},
    "from a generated token on": {"flip": [3, 8, 9], "first_position": 13},
    "where": {"flip": [3, 8, 9], "where": "5 & !6"},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", CHANGES)
def test_a_cache_changes_no_token(name: str, case: str, tiny_llama: Path):
    model: Any = MODELS[name](tiny_llama)
    coder = models.binary()
    coder.W_dec.mul_(3)  # one row is enough to change the next token
    before = generated(model, TOKENS, cached=True)
    with Steering(model, CodeChange(coder, **CHANGES[case])):
        cached = generated(model, TOKENS, cached=True)
        whole = generated(model, TOKENS, cached=False)
    assert cached.shape == (2, TOKENS.shape[1] + NEW)
    assert torch.equal(cached, whole)
    changed = (cached != before).any(0).nonzero()[:, 0]
    assert len(changed)
    # The activation at a position decides the token after it.
    assert changed[0] > CHANGES[case].get("first_position", 1)
    assert torch.equal(generated(model, TOKENS, cached=True), before)


def test_cached_steps_count_positions_from_the_row_s_start(tiny_llama: Path):
    model, coder, last = models.plain(tiny_llama), models.binary(), TOKENS.shape[1] + 3
    change = CodeChange(coder, flip=[3], first_position=last)
    module = model.base_model.get_submodule(MODULE)
    with kept(module) as before, Steering(model, change), kept(module) as after:
        generated(model, TOKENS, cached=True)
    # The hook of `before` was there first, so it has the model's own activations.
    differ = torch.cat([(a - b).abs().amax(-1) for a, b in zip(after, before, strict=True)], dim=1)
    assert differ[:, :last].max() == 0
    assert (differ[:, last:] > 0).all()


@pytest.mark.parametrize("name", ["plain", "bridge"])
def test_padding_stays_as_it_is_and_does_not_count(name: str, tiny_llama: Path):
    model: Any = MODELS[name](tiny_llama)
    inner = model.original_model if name == "bridge" else model
    row, start = TOKENS[:1], 4
    padded = torch.cat([torch.full((1, 3), PAD), row], dim=1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.int64), torch.ones_like(row)], dim=1)
    position_ids = (mask.cumsum(1) - 1).clamp_min(0)
    given = {"attention_mask": mask, "position_ids": position_ids}
    module = inner.base_model.get_submodule(MODULE)

    def run() -> list[Tensor]:
        with kept(module) as found, torch.no_grad():
            inner(padded, **given)
            inner(row)
        return found

    before = run()
    with Steering(model, CodeChange(models.binary(), flip=[3], first_position=start)):
        after = run()
    moved = [(a - b).abs().amax(-1)[0] > 0 for a, b in zip(after, before, strict=True)]
    assert moved[0].tolist() == [False] * (3 + start) + [True] * (row.shape[1] - start)
    assert moved[1].tolist() == [False] * start + [True] * (row.shape[1] - start)


def test_padded_rows_of_a_hooked_transformer_stay_as_they_are(tiny_llama: Path):
    model: Any = hooked_llama(tiny_llama)
    model.tokenizer.padding_side = "left"
    coder = models.binary()
    texts = ["w4 w9 w30 w12 w7", "w4 w9"]
    point = model.blocks[1].hook_resid_post
    with kept(point) as before, Steering(model, CodeChange(coder, flip=[3])), kept(point) as after:
        model(texts)
    moved = (after[0] - before[0]).abs().amax(-1) > 0
    # Each row starts with <s>, at position 0.
    assert moved.tolist() == [[False] + [True] * 5, [False] * 4 + [True] * 2]


def test_left_padded_generation_is_that_of_the_row_alone(tiny_llama: Path):
    model = models.plain(tiny_llama)
    row = TOKENS[:1]
    padded = torch.cat([torch.full((1, 3), PAD), row], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    change = CodeChange(models.binary(), flip=[3, 8], first_position=11)
    settings: dict[str, Any] = {
        "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD,
    }  # fmt: skip
    with Steering(model, change):
        alone = model.generate(row, attention_mask=torch.ones_like(row), **settings)
        with_padding = model.generate(padded, attention_mask=mask, **settings)
    assert torch.equal(with_padding[:, 3:], alone)


def test_positions_count_tokens_that_are_not_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert positions_of(3, 2, 3, mask).tolist() == [[1, 2], [3, 4], [3, -1]]
    assert positions_of(1, 2, 3, None).tolist() == [[3, 4]]


@pytest.mark.parametrize("mask", [torch.ones(2, 4), torch.ones(2, 1, 9, 9), {"full": None}])
def test_a_mask_that_does_not_tell_padding_is_refused(mask: Any):
    with pytest.raises(ValueError, match="steering cannot tell which of 9 tokens are padding"):
        positions_of(2, 9, 0, mask)


def test_activations_of_other_tokens_are_refused(tiny_llama: Path):
    model, coder = models.plain(tiny_llama), models.binary()
    with Steering(model, CodeChange(coder, set=[1])) as steering:
        outputs_of(model)
        with pytest.raises(ValueError, match="steering takes \\[rows, context, width\\]"):
            steering._positions.at(torch.zeros(18, 16))
        with pytest.raises(ValueError, match=r"have \(2, 4\) rows and tokens, and the forward"):
            steering._positions.at(torch.zeros(2, 4, 16))
