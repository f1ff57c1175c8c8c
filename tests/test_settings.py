"""Tests of the settings that all commands share if they read a text."""

import pytest
import torch

from sae_binary_ext.commands import (
    AblateConfig,
    CompareConfig,
    CompressConfig,
    ComsemConfig,
    EntropyConfig,
    EntropyProfileConfig,
    GradientsConfig,
    IndexConfig,
    InterpretConfig,
    MultiBitConfig,
    ProbeConfig,
    RulesConfig,
    SteerConfig,
    TransferConfig,
)
from sae_binary_ext.settings import TextConfig

CONFIGS = [
    AblateConfig,
    CompareConfig,
    CompressConfig,
    ComsemConfig,
    EntropyConfig,
    EntropyProfileConfig,
    GradientsConfig,
    IndexConfig,
    MultiBitConfig,
    ProbeConfig,
    SteerConfig,
    RulesConfig,
    TransferConfig,
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens=0: give a number of at least 1"),
        ({"context_size": 1}, "context_size=1: give a number of at least 2"),
        ({"first_position": 63, "context_size": 64}, "first_position=63"),
        ({"first_position": -1}, "first_position=-1"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    config: type[TextConfig], fields: dict[str, int], message: str
):
    with pytest.raises(ValueError, match=message):
        config(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("config", [*CONFIGS, InterpretConfig])
def test_the_device_is_the_gpu_where_there_is_one(
    config: type[TextConfig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config().device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config().device == "cuda"
    assert config(device="cpu").device == "cpu"
