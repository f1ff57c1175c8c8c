import torch

from sae_binary_ext.training.attach import attach_to_loss, attach_to_output


def test_a_loss_keeps_its_value_and_gains_a_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    loss = attach_to_loss(x * 2, x.square())
    assert loss.item() == 6.0
    (loss / 4).backward()  # a trainer may divide by its number of microbatches
    assert x.grad == (2 + 2 * 3) / 4


def test_an_output_keeps_its_values_and_gains_a_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    output = attach_to_output(x * 2, x.square().sum())
    assert output.tolist() == [2.0, 4.0]
    (output * torch.tensor([5.0, 7.0])).sum().backward()
    assert x.grad.tolist() == [2 * 5 + 2 * 1, 2 * 7 + 2 * 2]
