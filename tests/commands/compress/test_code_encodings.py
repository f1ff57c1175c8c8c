"""Bits and errors of vectors in float16 and int8 are the expected ones."""

import pytest
import torch

from sae_binary_ext.commands.compress.code_encodings import RunningVectors


def test_bits_are_those_of_the_types_and_errors_those_of_rounding():
    vectors = torch.randn(3000, 40) * 7
    running = RunningVectors()
    for part in vectors.split(128):
        running.add(part)
    variance = (vectors - vectors.mean(0)).double().square().sum().item()
    found = running.figures(variance)
    assert found.bits["float16"] == found.float16_bits == 640
    assert found.bits["int8"] == 8 * 40 + 16
    assert found.fvu["float16, zstandard"] == found.fvu["float16"]

    half = (vectors.half().double() - vectors.double()).square().sum().item() / variance
    assert found.fvu["float16"] == pytest.approx(half, rel=1e-6)
    # A step is 1/127 of the largest element, which is exact. The rounding errors of the other 39
    # elements are uniform between -1/2 and 1/2 of a step.
    steps = vectors.abs().amax(1).double() / 127
    expected = (39 * steps.square() / 12).sum().item() / variance
    assert found.fvu["int8"] == pytest.approx(expected, rel=0.01)


def test_vectors_that_repeat_are_compressed_and_zeros_do_no_harm():
    running = RunningVectors()
    running.add(torch.zeros(200, 16))
    found = running.figures(1.0)
    assert found.bits["int8, zstandard"] < found.bits["int8"] / 10
    assert set(found.fvu.values()) == {0.0}
