import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy
import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding.deferred import Deferred, DeferredCodes


def deferred(values: Tensor) -> tuple[Deferred, list[int]]:
    """A tensor of these values and a list that grows each time they are computed."""
    computed: list[int] = []

    def make() -> Tensor:
        computed.append(1)
        return values.clone()

    return Deferred(make, tuple(values.shape), values.dtype, values.device), computed


def test_what_is_known_beforehand_computes_nothing():
    values = torch.randn(3, 5, dtype=torch.float64)
    tensor, computed = deferred(values)
    assert isinstance(tensor, Tensor)
    assert (tensor.shape, tensor.dtype, tensor.device) == ((3, 5), torch.float64, values.device)
    assert (tensor.ndim, len(tensor), tensor.numel(), tensor.is_contiguous()) == (2, 3, 15, True)
    assert not tensor.requires_grad
    assert not computed
    assert not tensor.is_computed


def test_operations_compute_the_values_once_and_return_plain_tensors():
    values = torch.randn(3, 5)
    tensor, computed = deferred(values)
    results = (
        (tensor + 1, values + 1),
        (torch.stack([tensor, tensor]), torch.stack([values, values])),
        (tensor[1:, :2].T, values[1:, :2].T),
        (tensor.detach(), values),
        (torch.add(values, other=tensor), values + values),
    )
    for found, expected in results:
        assert type(found) is Tensor
        assert torch.equal(found, expected)
    assert len(computed) == 1
    assert tensor.is_computed


def test_changes_in_place_are_kept():
    values = torch.randn(3, 5)
    tensor, _ = deferred(values)
    tensor.mul_(2)
    assert torch.equal(tensor.detach(), 2 * values)


def test_what_is_no_operation_finds_the_values():
    values = torch.randn(3, 5)
    assert deferred(values)[0].tolist() == values.tolist()
    assert numpy.array_equal(deferred(values)[0].numpy(), values.numpy())
    assert torch.equal(pickle.loads(pickle.dumps(deferred(values)[0])), values)


def test_a_gradient_comes_back_through_it():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            held = x.detach()
            return Deferred(lambda: 2 * held, tuple(x.shape), x.dtype, x.device)

        @staticmethod
        def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
            return 2 * grad_outputs[0]

    x = torch.randn(3, 5, requires_grad=True)
    tensor = Doubled.apply(x)
    assert tensor.requires_grad
    assert not tensor.is_computed
    tensor.square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x.detach())


@dataclass
class Form:
    """Codes, and how often all of them were asked for."""

    codes: Tensor
    asked: list[int] = field(default_factory=list[int])

    def dense(self) -> Tensor:
        self.asked.append(1)
        return self.codes.clone()

    def latents_per_token(self) -> Tensor:
        return self.codes.bool().sum(1)

    def tokens_per_latent(self) -> Tensor:
        return self.codes.bool().sum(0)


def some_codes(dtype: torch.dtype = torch.float32) -> tuple[DeferredCodes, Form]:
    form = Form((torch.rand(6, 9) < 0.4).to(dtype))
    return DeferredCodes(form, (6, 9), dtype, form.codes.device), form


Statistic = Callable[[Tensor], Tensor]
TOLD: dict[str, Statistic] = {
    "the trainer's latents": lambda codes: codes.bool().float().sum(0),
    "the trainer's active latents": lambda codes: codes.bool().float().sum(-2).bool(),
    "the trainer's l0": lambda codes: codes.bool().float().sum(-1).to_dense().mean(),
    "per token": lambda codes: codes.sum(1),
    "bytes": lambda codes: codes.to(torch.int8).sum(0),
    "of a wider dtype": lambda codes: codes.sum(0, dtype=torch.float64),
    "complex": lambda codes: codes.to(torch.complex64).sum(0),
}
NOT_TOLD: dict[str, Statistic] = {
    "of all": lambda codes: codes.sum(),
    "over both": lambda codes: codes.sum((0, 1)),
    "shape kept": lambda codes: codes.sum(0, keepdim=True),
    "a copy": lambda codes: codes.clone(),
    "a layout": lambda codes: codes.to(torch.int8, memory_format=torch.contiguous_format),
    "means": lambda codes: codes.mean(0),
    "of two": lambda codes: torch.cat((codes, codes)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*TOLD, *NOT_TOLD])
def test_statistics_are_those_of_the_codes(name: str, dtype: torch.dtype):
    codes, form = some_codes(dtype)
    statistic = (TOLD | NOT_TOLD)[name]
    found, expected = statistic(codes), statistic(form.codes)
    assert type(found) is Tensor
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert len(form.asked) == (name in NOT_TOLD)


def test_codes_of_another_dtype_have_the_values_and_memory_of_their_own():
    codes, form = some_codes()
    active = codes.bool()
    assert torch.equal(active.detach(), form.codes.bool())
    active.logical_not_()
    assert torch.equal(active.sum(0), (1 - form.codes).sum(0).long())
    assert torch.equal(codes.detach(), form.codes)


def test_statistics_of_codes_changed_in_place_are_of_what_they_are_now():
    codes, form = some_codes()
    codes[2:] = 0
    assert torch.equal(codes.sum(0), form.codes[:2].sum(0))
    assert torch.equal(codes.bool().sum(1)[:2], form.codes.bool().sum(1)[:2])
    assert not codes.bool().sum(1)[2:].any()
