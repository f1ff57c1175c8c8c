import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_binary_ext.commands.index import rice


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(
    st.just(size), st.sets(st.integers(0, size - 1)))))  # fmt: skip
def test_positions_come_back(drawn: tuple[int, set[int]]):
    size, members = drawn
    positions = np.array(sorted(members), np.uint32)
    payload, bits = rice.encode(positions, size)
    assert rice.decode(payload, len(positions), bits, size).tolist() == positions.tolist()


def test_far_positions_come_back():
    size = 2**32 - 1
    positions = np.array([0, 5, 2**31, size - 1], np.uint32)
    payload, bits = rice.encode(positions, size)
    assert rice.decode(payload, 4, bits, size).tolist() == positions.tolist()


@pytest.mark.parametrize("rate", [0.0005, 0.007, 0.05, 0.3, 0.5, 0.95])
def test_random_positions_take_little_more_than_their_entropy(rate: float):
    size = 400_000
    positions = np.flatnonzero(np.random.default_rng(0).random(size) < rate).astype(np.uint32)
    own = len(positions) / size
    entropy = -(own * np.log2(own) + (1 - own) * np.log2(1 - own)) * size / 8
    payload, _ = rice.encode(positions, size)
    assert entropy < len(payload) < 1.07 * entropy


def test_a_payload_of_another_length_is_refused():
    payload, bits = rice.encode(np.array([3, 50, 60], np.uint32), 100)
    with pytest.raises(ValueError, match="holds 3 positions, where 4 were counted"):
        rice.decode(payload, 4, bits, 100)
