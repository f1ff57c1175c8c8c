"""Tests of sparse codes whose sums over tokens are known."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding.forms.counted import CountedCodes


@pytest.fixture
def dense() -> Tensor:
    return (torch.rand(6, 9) < 0.3).float()


@pytest.fixture
def codes(dense: Tensor) -> CountedCodes:
    return CountedCodes.of(dense.to_sparse(), dense.sum(0))


@pytest.mark.parametrize("dim", [0, -2])
def test_trainer_sums_over_tokens_without_reading_entries(codes: CountedCodes, dim: int):
    told = torch.arange(9.0)
    codes._counts = told
    assert torch.equal(codes.bool().float().sum(dim), told)


READS = {
    "over latents": lambda codes: codes.bool().float().sum(-1),
    "of all": lambda codes: codes.sum(),
    "kept dimension": lambda codes: codes.to_dense().sum(0, keepdim=True),
    "whole numbers": lambda codes: codes.bool().sum(0),
    "other dtype": lambda codes: codes.float().sum(0, dtype=torch.float64),
    "double": lambda codes: codes.double().sum(0),
    "product": lambda codes: codes @ torch.eye(9),
    "detached": lambda codes: codes.detach(),
    "copied": copy.deepcopy,
    "pickled": lambda codes: pickle.loads(pickle.dumps(codes)),
}


@pytest.mark.parametrize("read", READS)
def test_other_reads_are_those_of_a_plain_tensor(read: str, codes: CountedCodes, dense: Tensor):
    plain = dense.to_sparse()
    found, expected = READS[read](codes), READS[read](plain)
    assert type(found) is Tensor
    assert found.dtype == expected.dtype
    assert torch.equal(found.to_dense(), expected.to_dense())
