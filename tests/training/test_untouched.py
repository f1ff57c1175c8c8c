from collections.abc import Callable

import pytest
import torch
from torch import nn

from sae_binary_ext.training import untouched
from sae_binary_ext.training.untouched import InitialParameters

CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "written through data": lambda layer: layer.weight.data.copy_(torch.eye(5, 3)),
    "another tensor": lambda layer: setattr(layer.weight, "data", torch.ones(5, 3)),
    "one number": lambda layer: layer.weight.data[4, 2].add_(1.0),
    "the last bit": lambda layer: layer.weight.data.mul_(1 + 2**-23),
    "rows exchanged": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0)),
    "a sign of zero": lambda layer: layer.weight.data[0, 0].neg_(),
    "loaded": lambda layer: layer.load_state_dict(
        {"weight": torch.ones(5, 3), "bias": layer.bias.data.clone()}
    ),
}


def layer_of(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(3, 5, dtype=dtype)
    layer.weight.data[0, 0] = 0.0
    return layer


@pytest.mark.parametrize("dtype", untouched.DTYPES, ids=str)
def test_nothing_is_changed_by_reading_training_mode_or_a_cast(dtype: torch.dtype):
    layer = layer_of()
    initial = InitialParameters(layer)
    layer(torch.ones(3)).sum().backward()
    assert initial.changed(layer.eval()) == []
    assert initial.changed(layer.to(dtype)) == []


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_set_is_named(change: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(untouched, "PART", 4)  # the 15 numbers then make several parts
    layer = layer_of()
    initial = InitialParameters(layer)
    CHANGES[change](layer)
    assert initial.changed(layer) == ["weight"]


def test_a_change_before_a_cast_is_seen():
    layer = layer_of()
    initial = InitialParameters(layer)
    layer.bias.data.add_(1.0)
    assert initial.changed(layer.bfloat16()) == ["bias"]


def test_parameters_that_came_later_count_as_changed():
    layer = layer_of()
    initial = InitialParameters(layer)
    layer.scale = nn.Parameter(torch.ones(1))
    assert initial.changed(layer) == ["scale"]
    empty = nn.Linear(3, 5, device="meta")
    initial = InitialParameters(empty)
    assert initial.changed(empty.to_empty(device="cpu")) == ["weight", "bias"]


def test_random_numbers_go_on_as_without_it():
    layer = layer_of()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    InitialParameters(layer)
    assert torch.equal(torch.rand(3), expected)
