import logging

import pytest
import torch

from sae_binary_ext.training.collapse import CollapseWatch

HEALTHY = torch.full((200,), 0.05)
ALIVE = torch.zeros(200, dtype=torch.bool)


def seen(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


@pytest.mark.parametrize(
    ("rates", "dead", "said"),
    [
        (torch.full((200,), 0.004), None, "0.8 of 200 latents are active on a token"),
        (torch.cat([torch.ones(101), torch.zeros(99)]), None, "more than nine of ten tokens"),
        (HEALTHY, torch.arange(200) < 190, "95% of the latents are dead"),
    ],
    ids=["silent", "dense", "dead"],
)
def test_a_collapse_is_warned_of_once_and_a_recovery_too(
    rates: torch.Tensor, dead: torch.Tensor | None, said: str, caplog: pytest.LogCaptureFixture
):
    watch = CollapseWatch()
    with caplog.at_level(logging.WARNING):
        watch.check(HEALTHY, ALIVE, 100)
        assert seen(caplog) == []
        watch.check(rates, dead, 200)
        (message,) = seen(caplog)
        assert message.startswith("Training step 200: ")
        assert said in message
        watch.check(rates, dead, 300)
        assert seen(caplog) == []
        watch.check(HEALTHY, ALIVE, 400)
        assert seen(caplog) == ["Training step 400: the latents' firing has recovered."]


@pytest.mark.parametrize(
    ("rates", "dead"),
    [
        (torch.full((200,), 0.006), None),
        (torch.cat([torch.ones(100), torch.zeros(100)]), None),
        (torch.full((200,), 0.6), None),
        (HEALTHY, torch.arange(200) < 180),
    ],
    ids=["few", "half always on", "all mostly on", "nine of ten dead"],
)
def test_what_is_no_collapse(
    rates: torch.Tensor, dead: torch.Tensor | None, caplog: pytest.LogCaptureFixture
):
    CollapseWatch().check(rates, dead, 100)
    assert seen(caplog) == []


def test_looks_are_rare():
    assert [step for step in range(301) if CollapseWatch.is_due(step)] == [100, 200, 300]
