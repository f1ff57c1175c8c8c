from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sae_binary_ext
from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.coding.kernels.processor import multiplies_bfloat16, multiplies_bytes


@pytest.fixture(autouse=True)
def asked_anew():
    processor._has.cache_clear()
    yield
    processor._has.cache_clear()


@pytest.mark.parametrize(
    ("known", "bfloat16", "whole_bytes"),
    [
        ({}, False, False),
        ({"avx512_bf16": False, "avx512_vnni": False}, False, False),
        ({"avx512_bf16": True}, True, False),
        ({"amx_bf16": True}, True, False),
        ({"avx512_vnni": True}, False, True),
        ({"amx_int8": True}, False, True),
    ],
    ids=str,
)
def test_what_torch_knows_of_the_processor_decides(
    known: dict[str, bool], bfloat16: bool, whole_bytes: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert multiplies_bfloat16() is bfloat16
    assert multiplies_bytes() is whole_bytes


@pytest.mark.parametrize("asks", [multiplies_bfloat16, multiplies_bytes])
def test_versions_of_torch_that_cannot_say_multiply_float32(
    asks: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert asks() is False


def test_one_module_of_the_mathematics_asks_for_the_device():
    coding = Path(sae_binary_ext.__file__).parent / "coding"
    asking = [path.name for path in coding.rglob("*.py") if "device.type" in path.read_text()]
    assert asking == ["processor.py"]
