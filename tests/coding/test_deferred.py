import torch
from torch import Tensor

from sae_binary_ext.coding.deferred import Deferred


def deferred(values: Tensor) -> tuple[Deferred, list[int]]:
    """A tensor of these values and a list that grows each time they are computed."""
    computed: list[int] = []

    def make() -> Tensor:
        computed.append(1)
        return values.clone()

    return Deferred(make, tuple(values.shape), values), computed


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


def test_a_gradient_comes_back_through_it():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            held = x.detach()
            return Deferred(lambda: 2 * held, tuple(x.shape), x)

        @staticmethod
        def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
            return 2 * grad_outputs[0]

    x = torch.randn(3, 5, requires_grad=True)
    tensor = Doubled.apply(x)
    assert tensor.requires_grad
    assert not tensor.is_computed
    tensor.square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x.detach())
