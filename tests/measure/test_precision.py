"""A model reads in bfloat16 where the settings ask for it, and only there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sae_binary_ext.commands import AblateConfig, EntropyConfig, ProbeConfig, RulesConfig
from sae_binary_ext.measure import reading
from sae_binary_ext.measure.candidates import OpenedModel, ReadBatch
from sae_binary_ext.measure.documents import OutlyingTokens
from sae_binary_ext.measure.reading import multiplies_in_bfloat16, read_text, settings_of
from tests.small_models import save_tokenizer
from tests.toy_model import ToyLanguageModel

HOOKS = ("hook_in", "hook_out")


@pytest.fixture
def opened(tmp_path: Path) -> OpenedModel:
    """A toy model in float32 that reads documents of 3, 11 and 4 words, in rows of at most 8."""
    save_tokenizer(tmp_path)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = ["w2 w3 w4", " ".join(f"w{2 + number % 5}" for number in range(11)), "w6 w5 w4 w3"]
    return OpenedModel(
        [], {}, ToyLanguageModel(), "toy", tokenizer, "texts", lambda: texts, OutlyingTokens(1e9),
        8, 0,
    )  # fmt: skip


def read(opened: OpenedModel, **settings: Any) -> list[ReadBatch]:
    config = EntropyConfig(dataset="texts", tokens=18, context_size=8, device="cpu", **settings)
    return list(read_text(opened, config, more_hooks=HOOKS))


@pytest.mark.parametrize(
    ("precision", "device", "able", "expected"),
    [
        ("auto", "cpu", True, True),
        ("auto", "cpu", False, False),
        ("auto", "cuda:0", True, False),
        ("float32", "cpu", True, False),
        ("bfloat16", "cpu", False, True),
    ],
)
def test_products_are_in_bfloat16_where_the_processor_has_it(
    precision: str, device: str, able: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "multiplies_bfloat16", lambda: able)
    assert multiplies_in_bfloat16(EntropyConfig(precision=precision, device=device)) is expected


def test_only_commands_that_read_tasks_choose_by_themselves():
    assert (EntropyConfig().precision, ProbeConfig().precision) == ("float32", "auto")
    assert RulesConfig().precision == "auto"
    assert not multiplies_in_bfloat16(AblateConfig(device="cpu"))


def test_files_list_the_precision_that_auto_took(opened: OpenedModel):
    config = EntropyConfig(precision="auto", device="cpu")
    assert settings_of(replace(opened, bfloat16=True), config)["precision"] == "bfloat16"
    assert settings_of(opened, config)["precision"] == "float32"


def test_a_precision_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="precision='float8': choose one of auto"):
        EntropyConfig(precision="float8")


def test_a_pass_in_bfloat16_is_torch_s_own(opened: OpenedModel):
    (low,) = read(replace(opened, bfloat16=True))
    (exact,) = read(opened)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (expected,) = read(opened)
    there = exact.text.positions(0)
    for hook in HOOKS:
        assert torch.equal(low.found[hook][there], expected.found[hook][there])
    where = "hook_out"
    assert not torch.equal(low.found[where][there].float(), exact.found[where][there])
    torch.testing.assert_close(
        low.found[where][there].float(), exact.found[where][there], rtol=0.05, atol=0.05
    )


def test_rows_are_padded_after_the_longest_one_alone(opened: OpenedModel):
    def short() -> list[str]:
        return ["w2 w3 w4", "w6 w5"]

    seen: list[int] = []
    model: Any = opened.model
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    (batch,) = read(replace(opened, documents=short))
    longest = int(batch.text.lengths.max())
    assert seen == [longest]
    assert longest < 8
    for hook in HOOKS:
        assert batch.found[hook].shape[:2] == batch.text.tokens.shape == (2, 8)
        assert not batch.found[hook][:, longest:].any()
        own = opened.forward(batch.text.tokens, HOOKS)[hook]
        there = batch.text.positions(0)
        torch.testing.assert_close(batch.found[hook][there], own[there])
