import pytest
import torch

from sae_binary_ext.coding.kernels.seeding import seeded

CPU = torch.device("cpu")


def test_a_seed_decides_what_is_drawn_and_leaves_the_rest_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    draws = []
    for seed in (5, 5, 6):
        with seeded(seed, CPU):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(2), expected)


def test_no_seed_draws_as_torch_does():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(None, CPU):
        assert torch.equal(torch.rand(2), expected)


def test_devices_that_draw_nothing_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seen.append)
    with seeded(5, CPU):
        torch.rand(3)
    assert not seen


@pytest.mark.gpu
def test_on_a_gpu_its_own_numbers_are_seeded():
    device = torch.device("cuda")
    torch.manual_seed(0)
    expected, on_cpu = torch.rand(2, device=device), torch.rand(2)
    torch.manual_seed(0)
    draws: list[torch.Tensor] = []
    for seed in (5, 5, 6):
        with seeded(seed, device):
            draws.append(torch.rand(3, device=device))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(2, device=device), expected)
    assert torch.equal(torch.rand(2), on_cpu)
