"""The first batch does not overwrite parameters that the user has set."""

import copy
import logging
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import nn

from tests.saelens.test_any_architecture import CONFIGS, config_of

each = pytest.mark.parametrize("name", CONFIGS)


def fresh(name: str) -> Any:
    torch.manual_seed(0)
    return TrainingSAE.from_dict(config_of(name).to_dict())


def step(coder: Any) -> None:
    width = coder.cfg.d_in + getattr(coder.cfg, "d_out", 0)
    rows = torch.randn(100, width, generator=torch.Generator().manual_seed(1)) + 2
    coder.training_forward_pass(TrainStepInput(rows, {}, None, 0, False))


def parameters_of(coder: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in coder.named_parameters()}


def copied(parameter: nn.Parameter) -> None:
    parameter.data.copy_(torch.randn_like(parameter))


def filled(parameter: nn.Parameter) -> None:
    parameter.data.fill_(7.0)


def last_value(parameter: nn.Parameter) -> None:
    parameter.data.view(-1)[-1] += 1e-3


@each
@pytest.mark.parametrize("change", [copied, filled, last_value])
@pytest.mark.parametrize("parameter", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_coder_set_by_hand_keeps_all_its_parameters(
    parameter: str, change: Any, name: str, caplog: pytest.LogCaptureFixture
):
    coder = fresh(name)
    change(getattr(coder, parameter))
    before = parameters_of(coder)
    with caplog.at_level(logging.WARNING):
        step(coder)
    torch.testing.assert_close(parameters_of(coder), before, rtol=0, atol=0)
    assert f"{parameter} set by hand" in caplog.text


@each
def test_an_assigned_parameter_counts_as_set(name: str):
    coder = fresh(name)
    mine = nn.Parameter(torch.randn_like(coder.W_dec))
    coder.W_dec = mine
    step(coder)
    assert coder.W_dec is mine
    torch.testing.assert_close(coder.b_enc.detach(), torch.zeros_like(coder.b_enc))


def there_and_back(coder: Any) -> Any:
    return coder.to(torch.float64).to(torch.float32)


def moved(coder: Any) -> Any:
    return coder.to("cpu")


def rounded(coder: Any) -> Any:
    return coder.to(torch.bfloat16)


@each
@pytest.mark.parametrize("handle", [copy.deepcopy, moved, rounded, there_and_back])
def test_an_untouched_coder_is_started_however_it_is_handled(handle: Any, name: str):
    coder = handle(fresh(name))
    step(coder)
    assert (coder.b_dec != 0).any()
    assert (coder.b_enc != 0).any()


@each
def test_a_start_asked_for_leaves_room_for_what_is_set_by_hand(name: str):
    coder = fresh(name)
    width = coder.cfg.d_in + getattr(coder.cfg, "d_out", 0)
    coder.fit_to_first_batch(torch.randn(100, width))
    coder.W_dec.data.fill_(7.0)
    before = parameters_of(coder)
    step(coder)
    torch.testing.assert_close(parameters_of(coder), before, rtol=0, atol=0)
    assert (coder.b_enc != 0).any()
