"""If an error says how to set a field of a config, setting the field that way works."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.commands import CompareConfig
from sae_binary_ext.commands.ablate.ablate_run import AblateConfig
from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.demo.config import DemoConfig
from sae_binary_ext.commands.entropy_check.entropy_check_run import EntropyCheckConfig
from sae_binary_ext.commands.entropy_profile.entropy_profile_run import EntropyProfileConfig
from sae_binary_ext.commands.gradients.gradients_run import GradientsConfig
from sae_binary_ext.commands.index.config import IndexConfig
from sae_binary_ext.commands.interpret.config import InterpretConfig
from sae_binary_ext.commands.multi_bit.multi_bit_run import MultiBitConfig
from sae_binary_ext.commands.plan.config import PlanConfig
from sae_binary_ext.commands.probe.config import ProbeConfig
from sae_binary_ext.commands.rules.config import RulesConfig
from sae_binary_ext.commands.steer.config import SteerConfig
from sae_binary_ext.measure.reading import ReadingConfig
from sae_binary_ext.measure.text import Text
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.settings import TextSource
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.remedies import settings

SIZES: dict[str, Any] = {"d_in": 8, "d_sae": 16, "k": 4}
CONFIGS: dict[type, dict[str, Any]] = {
    CodeRule: {},
    BinarySAEConfig: SIZES,
    BinaryTrainingSAEConfig: SIZES,
    BinaryEntropyTrainingSAEConfig: SIZES,
    BinaryTranscoderConfig: SIZES,
    BinaryTranscoderTrainingSAEConfig: SIZES,
    TopKTranscoderTrainingSAEConfig: SIZES,
    BinarySparseCoderConfig: {},
    CompareConfig: {},
    InterpretConfig: {},
    ReadingConfig: {},
    AblateConfig: {},
    ComsemConfig: {},
    EntropyCheckConfig: {},
    EntropyProfileConfig: {},
    GradientsConfig: {},
    IndexConfig: {},
    MultiBitConfig: {},
    PlanConfig: {},
    ProbeConfig: {},
    SteerConfig: {},
    RulesConfig: {},
    Text: {"dataset": "texts"},
    DemoConfig: {},
}
NUMBERS: tuple[Any, ...] = (-1, 0, 1, 0.25, 7, 10**9, float("nan"), float("inf"))
WRONG: tuple[Any, ...] = (*NUMBERS, "no such", "float16")

NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?)"
REMEDIES: dict[str, Any] = {
    r"choose one of (.+)\.": lambda found: found[1].split(", "),
    r"choose (\w+), (\w+) or (\w+);": lambda found: list(found.groups()),
    rf"give (?:a number|numbers) of at least {NUMBER}": lambda found: [int(found[1])],
    rf"[Gg]ive at most {NUMBER}": lambda found: [int(found[1])],
    r"dimensions=\[(\d+).*Give at most as many": lambda found: [int(found[1])],
    r"give a whole number of at least 1": lambda found: [1],
    r"give the width of the output, at least 1": lambda found: [1],
    r"give a positive number": lambda found: [1e-3, 1],
    r"give a number from 0 to 1, or None": lambda found: [0, 1, 0.25],
    r"give a number between 0 and 1": lambda found: [0.01, 0.5, 0.99],
    r"give a share above 0\.5, up to 1": lambda found: [0.51, 1],
    r"give an even number": lambda found: [2],
    r"SmolLM2 takes 2 to 8192 tokens": lambda found: [2, 8192],
    rf"give a number from 0 to two less than context_size={NUMBER}": lambda found: [
        0, int(found[1]) - 2,
    ],
    rf"Give a context_size of at least {NUMBER}": lambda found: [{"context_size": int(found[1])}],
    rf"give {NUMBER} at most": lambda found: [int(found[1])],
    r'Train in "(\w+)" or "(\w+)"': lambda found: list(found.groups()),
    r"inf leaves no token out": lambda found: [float("inf")],
    r"Set scores to the scores\.jsonl": lambda found: [{"scores": Path("scores.jsonl")}],
    r"Set ranking='score'": lambda found: ["score"],
    r"Set both": lambda found: [{"prompts": "in_context", "along": "positions"}],
}  # fmt: skip


def told(message: str) -> list[Any]:
    """Values, or settings of several fields, that an error proposes. The list may be empty."""
    return [
        value
        for pattern, values in REMEDIES.items()
        if (found := re.search(pattern, message))
        for value in values(found)
    ]


def refusal(config: type, settings: dict[str, Any]) -> str | None:
    """Error text of a config for settings. None if they are accepted or their type is wrong."""
    try:
        config(**settings)
    except ValueError as error:
        return str(error)
    except (TypeError, AttributeError, AssertionError):
        return None
    return None


def follow(config: type, settings: dict[str, Any], message: str, lists: set[str]) -> int:
    """Follow an error's remedies. If the next error is about another field, follow it too.

    Returns:
        Number of remedies of the first error.
    """
    followed = 0
    name = message.partition("=")[0]
    for value in told(message):
        own = value if isinstance(value, dict) else {name: [value] if name in lists else value}
        again = refusal(config, settings | own)
        if again is not None:
            assert again != message, (message, own)
            assert told(again), (message, own, again)
            follow(config, settings | own, again, lists)
        followed += 1
    return followed


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_a_field_is_set_as_its_error_tells(config: type):
    followed = 0
    lists = {
        field.name
        for field in fields(config)
        if field.default_factory is not MISSING and isinstance(field.default_factory(), list)
    }
    for field in (field for field in fields(config) if field.init):
        for wrong in WRONG:
            settings = CONFIGS[config] | {field.name: [wrong] if field.name in lists else wrong}
            if (message := refusal(config, settings)) is not None:
                followed += follow(config, settings, message, lists)
    assert followed > 1


OF_SEVERAL_FIELDS = {
    "a judge that is half named": settings(
        InterpretConfig, "give both, or neither", {"judge_url": "http://localhost:1"},
        {}, {"judge_url": "http://localhost:1", "judge_model": "m"},
    ),
    "negatives without an embedding": settings(
        InterpretConfig, "negatives='random', or judge='embedding'",
        {"negatives": "hard", "judge": "tokens"},
        {"negatives": "random", "judge": "tokens"}, {"negatives": "hard", "judge": "embedding"},
    ),
    "no window in the context": settings(
        InterpretConfig, "at least 33, or a smaller window", {"context_size": 20},
        {"context_size": 33}, {"context_size": 20, "window": 19},
    ),
    "prompts along layers": settings(
        EntropyProfileConfig, "Set both", {"prompts": "in_context"},
        {"prompts": "in_context", "along": "positions"},
    ),
    "prompts from a file": settings(
        EntropyProfileConfig, "Leave activations out, or set prompts='text'",
        {"prompts": "in_context", "along": "positions", "activations": Path("own")},
        {"prompts": "in_context", "along": "positions"},
        {"prompts": "text", "along": "positions", "activations": Path("own")},
    ),
    "gradients of gumbel": settings(
        GradientsConfig, "choose topk or groupmax or threshold", {"selection": "gumbel"},
        *({"selection": selection} for selection in ("topk", "groupmax", "threshold")),
    ),
    "a plan of several ranks in SAELens": settings(
        PlanConfig, "Set host='sparsify'", {"ranks": 2}, {"ranks": 2, "host": "sparsify"},
    ),
    "a plan of sparsify in bfloat16": settings(
        PlanConfig, "Set dtype='float32'", {"host": "sparsify", "dtype": "bfloat16"},
        {"host": "sparsify", "dtype": "float32"},
    ),
    "a plan of a refined transcoder": settings(
        PlanConfig, "Set transcoder=False",
        {"architecture": "binary_refined", "transcoder": True},
        {"architecture": "binary_refined", "transcoder": False},
    ),
    "a column of the embedded articles": settings(
        RulesConfig, "Name a dataset too", {"labels": ["column:topic=sport"]},
        {"labels": ["column:topic=sport"], "dataset": "texts"},
    ),
    "a split of the embedded articles": settings(
        TextSource, "Name a dataset too", {"dataset": None, "split": "test"},
        {"dataset": "texts", "split": "test"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_SEVERAL_FIELDS)
def test_fields_that_do_not_go_together_say_what_does(name: str, tmp_path: Path):
    remedy = OF_SEVERAL_FIELDS[name]
    with pytest.raises(ValueError, match=re.escape(remedy.says)):
        remedy.mistake(tmp_path)
    remedy.follow(tmp_path)
