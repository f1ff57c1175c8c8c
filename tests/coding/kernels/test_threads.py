import os
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.threads import blocks_of_threads, map_blocks


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_operations_of_a_block_are_not_divided():
    def with_threads(block: int) -> tuple[int, int]:
        return block, torch.get_num_threads()

    found = map_blocks(with_threads, list(range(20)))
    assert found == [(block, 1) for block in range(20)]
    assert torch.get_num_threads() == 2


def test_threads_that_start_later_divide_their_operations():
    torch.set_num_threads(5)  # a number of which no other test has made threads
    map_blocks(str, [1, 2, 3, 4, 5])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 5


def test_one_thread_runs_blocks_itself():
    torch.set_num_threads(1)

    def thread_of(_: int) -> int:
        return get_ident()

    assert map_blocks(thread_of, [1, 2]) == [get_ident()] * 2


@pytest.mark.parametrize("inference", [True, False])
def test_blocks_run_without_gradient_in_the_caller_s_inference_mode(inference: bool):
    weight = torch.ones(3, requires_grad=True)
    with torch.inference_mode(inference):
        room = torch.zeros(2, 3)

        def add(row: int) -> Tensor:
            return room[row].add_(weight)

        found = map_blocks(add, [0, 1])
    assert all(not each.requires_grad and each.is_inference() == inference for each in found)
    assert torch.equal(room, torch.ones(2, 3))


def test_an_error_of_a_block_is_raised():
    def fail(block: int) -> None:
        raise ValueError(f"block {block}")

    with pytest.raises(ValueError, match="block 1"):
        map_blocks(fail, [1, 2])


def test_a_forked_process_has_threads_of_its_own():
    map_blocks(str, [1, 2])
    child = os.fork()
    if child == 0:
        os._exit(0 if map_blocks(str, [1, 2, 3]) == ["1", "2", "3"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("rows", "most", "sizes"),
    [(4096, 1024, [1024] * 4), (1024, 455, [256] * 4), (900, 1024, [450] * 2), (1, 8, [1])],
)
def test_each_thread_gets_as_many_rows(rows: int, most: int, sizes: list[int]):
    blocks = blocks_of_threads(torch.arange(rows), most)
    assert [len(block) for block in blocks] == sizes
    assert torch.equal(torch.cat(blocks), torch.arange(rows))
