"""The verdict on made-up times, and the one entry of the package that it would change."""

import pytest
import torch

from benchmarks.verdict import NEVER, FormTime, KernelTime, verdict
from sae_binary_ext.coding import CodeRule, Encoder, decode_indices, pack
from sae_binary_ext.coding.forms.encoded import DenseCodes, PickedCodes, encode_codes
from sae_binary_ext.coding.kernels.largest import largest
from sae_binary_ext.coding.kernels.processor import PATHS, Paths

KERNELS = frozenset({"row_sums", "row_dots", "segment_sums", "pick_largest", "pack_bits"})


@pytest.mark.parametrize(
    ("ratios", "error", "taken"),
    [
        ([0.5, 0.8, 1.2], 1e-3, True),  # the median counts
        ([0.9, 1.0, 1.1], 1e-3, False),
        ([0.97, 0.97], 1e-3, False),  # too little to gain
        ([0.2, 0.2], 5e-3, False),  # fast and wrong
    ],
)
def test_a_kernel_is_taken_if_it_is_faster_and_right(
    ratios: list[float], error: float, taken: bool
):
    times = [KernelTime("row_sums", ratio, error, 1e-3) for ratio in ratios]
    assert verdict(times, []).kernels == ({"row_sums"} if taken else set())


def test_a_kernel_that_is_wrong_at_one_size_is_not_taken():
    right, wrong = KernelTime("pack_bits", 0.1, 0, 0), KernelTime("pack_bits", 0.1, 0.5, 0)
    assert verdict([right, right], []).kernels == {"pack_bits"}
    assert verdict([right, wrong, right], []).kernels == set()


@pytest.mark.parametrize(
    ("ratios", "least"),
    [
        ({2: 1.4, 8: 0.9, 72: 0.5}, 8),
        ({2: 0.9, 8: 1.1, 72: 0.5}, 72),  # faster at a smaller number by chance
        ({2: 1.1, 8: 1.1, 72: 1.5}, NEVER),
        ({2: 0.4, 8: 0.4, 72: 0.4}, 2),
    ],
)
def test_the_index_form_is_taken_where_it_stays_faster(ratios: dict[int, float], least: int):
    forms = [FormTime(number, ratio) for number, ratio in ratios.items()]
    assert verdict([], forms).latents_a_learner == least


def test_ratios_at_equal_numbers_count_as_their_median():
    forms = [FormTime(8, 0.8), FormTime(8, 0.9), FormTime(8, 1.5)]
    assert verdict([], forms) == Paths(8)


def an_encoder() -> Encoder:
    shapes = ((9, 12), (12, 96), (96,), (96,), (12,))
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return Encoder(*tensors, CodeRule("topk", 4, surrogate_latents="near"))


def outputs_and_gradients() -> list[torch.Tensor]:
    encoder = an_encoder()
    codes = encode_codes(encoder)
    assert isinstance(codes, PickedCodes)
    weight = torch.linspace(-1, 1, 96 * 7).view(96, 7).requires_grad_()
    output = decode_indices(codes.codes, codes.picks, weight, torch.zeros(7))
    learned = (encoder.centred, encoder.weight, encoder.bias, encoder.log_threshold, weight)
    return [output, *torch.autograd.grad(output.square().sum(), learned)]


def test_one_entry_switches_to_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """The kernels run in Triton's interpreter if there is no GPU."""
    pytest.importorskip("triton")
    margin = torch.randn(5, 83)
    expected = outputs_and_gradients(), largest(margin, 6)[0].sort().values, pack(margin > 0)
    called: set[str] = set()
    from sae_binary_ext.coding.kernels import triton

    for name in KERNELS:
        kernel = getattr(triton, name)

        def noted(*inputs: object, name: str = name, kernel: object = kernel) -> object:
            called.add(name)
            return kernel(*inputs)  # pyright: ignore

        monkeypatch.setattr(triton, name, noted)
    monkeypatch.setitem(PATHS, "cpu", Paths(kernels=KERNELS))
    found = outputs_and_gradients(), largest(margin, 6)[0].sort().values, pack(margin > 0)
    torch.testing.assert_close(found, expected)
    assert called == KERNELS


def test_one_entry_switches_to_the_dense_form(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(encode_codes(an_encoder()), PickedCodes)
    monkeypatch.setitem(PATHS, "cpu", Paths(latents_a_learner=NEVER))
    assert isinstance(encode_codes(an_encoder()), DenseCodes)
