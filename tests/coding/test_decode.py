import pytest
import torch

from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.kernels.sparse import Picks
from sae_binary_ext.coding.selection import scatter_codes

TOKENS, LATENTS, K, D = 30, 20, 4, 6


def some_codes() -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.rand(TOKENS, LATENTS).topk(K).indices
    return torch.randint(0, 2, (TOKENS, K)).double(), index


def test_dense_form_sums_the_rows_of_active_latents():
    weight, bias = torch.randn(3, 2), torch.randn(2)
    codes = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    expected = torch.stack([weight[0] + weight[2] + bias, bias])
    torch.testing.assert_close(decode(codes, weight, bias), expected)


@pytest.mark.parametrize("fire", [None, K, K // 2, 1])
@pytest.mark.parametrize("contiguous", [True, False])
def test_index_form_equals_the_dense_one_in_value_and_every_gradient(
    fire: int | None, contiguous: bool
):
    codes, index = some_codes()
    if fire:
        codes[:, fire:] = 0
    incoming = torch.randn(D, TOKENS, dtype=torch.float64).T
    incoming = incoming.contiguous() if contiguous else incoming
    values = (torch.randn(LATENTS, D).double(), torch.randn(D).double())
    gradients: list[list[torch.Tensor | None]] = []
    outputs: list[torch.Tensor] = []
    for indexed in (True, False):
        code, weight, bias = (p.clone().requires_grad_() for p in (codes, *values))
        if indexed:
            output = decode_indices(code, Picks(index, LATENTS, fire), weight, bias)
        else:
            output = decode(scatter_codes(code, index, LATENTS), weight, bias)
        output.backward(incoming)
        outputs.append(output)
        gradients.append([code.grad, weight.grad, bias.grad])
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])
