import numpy
import pytest
import torch

from sae_binary_ext.coding.packing import pack, pack_indices, packed_width, unpack


@pytest.mark.parametrize("shape", [(5, 24), (5, 23), (2, 3, 17), (9,), (0, 12), (4, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_packed_codes_are_numpy_s_and_come_back(shape: tuple[int, ...], dtype: torch.dtype):
    codes = (torch.rand(shape) < 0.4).to(dtype)
    packed = pack(codes)
    assert packed.dtype is torch.uint8
    assert packed.shape == (*shape[:-1], packed_width(shape[-1]))
    as_numpy = numpy.packbits(codes.bool().numpy(), axis=-1, bitorder="little")
    assert torch.equal(packed, torch.from_numpy(as_numpy))
    assert torch.equal(unpack(packed, shape[-1], dtype), codes)


def test_every_byte_is_packed_and_unpacked():
    every = torch.arange(256, dtype=torch.uint8).unsqueeze(-1)
    codes = unpack(every, 8, torch.bool)
    assert torch.equal((codes * 2 ** torch.arange(8)).sum(-1), torch.arange(256))
    assert torch.equal(pack(codes), every)


def test_codes_that_are_not_contiguous_are_packed_as_they_are_read():
    codes = torch.rand(16, 32) < 0.5
    assert torch.equal(pack(codes.T), pack(codes.T.contiguous()))


@pytest.mark.parametrize("latents", [40, 37])
def test_packing_an_index_form_is_packing_its_codes(latents: int):
    index = torch.rand(3, 5, latents).topk(9).indices
    codes = torch.randint(0, 2, index.shape).float()
    dense = torch.zeros(3, 5, latents).scatter(-1, index, codes)
    assert torch.equal(pack_indices(codes, index, latents), pack(dense))


@pytest.mark.parametrize(
    ("latents", "dtype"), [(9, torch.uint8), (24, torch.uint8), (16, torch.int64)]
)
def test_a_wrong_number_of_latents_is_named(latents: int, dtype: torch.dtype):
    with pytest.raises(ValueError, match=rf"{latents} latents take uint8") as caught:
        unpack(torch.zeros(3, 1 + (latents == 16), dtype=dtype), latents)
    assert "(3, " in str(caught.value)
