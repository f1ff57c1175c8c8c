import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.coding.encode import Encoder, binarise, check_width, pre_activations
from sae_binary_ext.coding.forms.margins import active_latents
from sae_binary_ext.coding.forms.picked import encode_indices, picks_indices
from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.coding.selection import CodeRule, scatter_codes, select_codes
from tests.cases import LATENTS, each_indexed_rule, each_rule

D_IN = 7
CPU = torch.device("cpu")
TOKENS = 40


def parameters(seed: int = 0) -> list[Tensor]:
    """Returns x, encoder weight and bias, log threshold and origin, in float64 with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((TOKENS, D_IN), (D_IN, LATENTS), (LATENTS,), (LATENTS,), (D_IN,))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def split_off_origin(x: Tensor, origin: Tensor) -> Tensor:
    """Returns x minus origin, with a gradient for x only."""
    return x - origin.detach()


def assert_same_gradients(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, reference_parameter in zip(ours, theirs, strict=True):
        expected = reference_parameter.grad
        actual = mine.grad
        if expected is None:
            expected = torch.zeros_like(mine)
        if actual is None:
            actual = torch.zeros_like(mine)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@each_rule
@pytest.mark.parametrize("learns_origin", ["apart", "through the input"])
def test_dense_form_equals_the_reference_in_value_and_every_gradient(
    rule: CodeRule, learns_origin: str
):
    ours, theirs = parameters(), parameters()
    incoming = torch.randn(TOKENS, LATENTS, dtype=torch.float64)

    x, weight, bias, log_threshold, origin = ours
    if learns_origin == "apart":
        centred = split_off_origin(x, origin)
        pre = pre_activations(centred, weight, bias, origin)
    else:
        pre = pre_activations(x - origin, weight, bias)
    codes = binarise(pre, log_threshold, rule)
    codes.backward(incoming)
    x, weight, bias, log_threshold, origin = theirs
    expected = reference.codes((x - origin) @ weight + bias, log_threshold, rule)
    expected.backward(incoming)

    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-12)
    assert_same_gradients(ours, theirs)


@each_indexed_rule
@pytest.mark.parametrize("outputs", ["codes", "pre-activations", "both"])
def test_index_form_equals_the_reference_in_value_and_every_gradient(rule: CodeRule, outputs: str):
    ours, theirs = parameters(), parameters()
    for_codes, for_pre = torch.randn(2, TOKENS, LATENTS, dtype=torch.float64)
    for_codes = for_codes * (outputs != "pre-activations")
    for_pre = for_pre * (outputs != "codes")

    x, weight, bias, log_threshold, origin = ours
    centred = split_off_origin(x, origin)
    codes, picks, _, pre = encode_indices(
        Encoder(centred, weight, bias, log_threshold, origin, rule)
    )
    dense = scatter_codes(codes, picks.index, LATENTS)
    loss = torch.zeros((), dtype=torch.float64)
    if outputs != "pre-activations":
        loss = loss + (dense * for_codes).sum()
    if outputs != "codes":
        loss = loss + (pre * for_pre).sum()
    loss.backward()

    x, weight, bias, log_threshold, origin = theirs
    expected_pre = (x - origin) @ weight + bias
    expected = reference.codes(expected_pre, log_threshold, rule)
    ((expected * for_codes).sum() + (expected_pre * for_pre).sum()).backward()

    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pre, expected_pre)
    assert_same_gradients(ours, theirs)


@each_indexed_rule
def test_both_forms_give_the_same_codes_in_low_precision(rule: CodeRule):
    x, weight, bias, log_threshold, origin = (p.detach().bfloat16() for p in parameters())
    threshold = log_threshold.float()
    codes, picks, _, pre = encode_indices(Encoder(x, weight, bias, threshold, origin, rule))
    dense = binarise(pre, threshold, rule)
    assert codes.dtype == torch.bfloat16
    assert torch.equal(scatter_codes(codes, picks.index, LATENTS), dense)


def test_a_threshold_of_zero_is_the_step_at_zero():
    pre = torch.tensor([[-1.0, 0.0, 1e-6, 1.0]])
    no_threshold = torch.full((4,), -torch.inf)
    assert binarise(pre, no_threshold, CodeRule("threshold")).tolist() == [[0, 0, 1, 1]]


def test_the_threshold_is_the_exponential_of_the_parameter():
    pre = torch.tensor([[0.49, 0.51]])
    log_threshold = torch.tensor(0.5).log().expand(2)
    assert binarise(pre, log_threshold, CodeRule("threshold")).tolist() == [[0, 1]]


def test_index_form_is_chosen_for_sparse_picks_alone():
    assert picks_indices(CodeRule("topk", 32), 4608, CPU)
    assert not picks_indices(CodeRule("topk", 32), 64, CPU)
    assert not picks_indices(CodeRule("threshold", 32), 4608, CPU)


@pytest.mark.parametrize("shape", [(3, 6), (3, 8), (2, 3, 1), ()])
def test_wrong_width_is_named(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"d_in=7"):
        check_width(torch.zeros(shape), 7)


@each_rule
@pytest.mark.parametrize("in_parts", [False, True])
def test_the_index_form_holds_every_firing_once(
    rule: CodeRule, in_parts: bool, monkeypatch: pytest.MonkeyPatch
):
    if in_parts:
        monkeypatch.setattr(processor, "FEWEST_ROWS", 7)
        monkeypatch.setattr(processor, "PART", 1)
    pre, threshold = torch.randn(50, LATENTS).requires_grad_(), torch.rand(LATENTS)
    codes, index = active_latents(pre, threshold, rule)
    dense = select_codes(pre - threshold, rule, noise=False)
    scattered = scatter_codes(codes, index, LATENTS)
    assert torch.equal(scattered, dense)
    assert codes.sum() == dense.sum()
    assert all(len(set(row)) == len(row) for row in index.tolist())
    assert index.shape[-1] <= max(dense.sum(-1).max(), rule.k)
    incoming = torch.randn(50, LATENTS) * torch.zeros(50, LATENTS).scatter(-1, index, 1.0)
    (found,) = torch.autograd.grad((scattered * incoming).sum(), pre)
    (wanted,) = torch.autograd.grad((dense * incoming).sum(), pre)
    torch.testing.assert_close(found, wanted)


def test_the_index_form_of_silence_has_one_column():
    silent = torch.full((3, LATENTS), -1.0)
    codes, index = active_latents(silent, torch.zeros(LATENTS), CodeRule("threshold"))
    assert codes.shape == index.shape == (3, 1)
    assert codes.sum() == 0
