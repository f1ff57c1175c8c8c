"""Random numbers that do not depend on earlier draws."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch

from sae_binary_ext.coding.kernels.processor import draws_on_gpu


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Generator[None]:
    """Inside the block, torch draws from this seed on this device; a seed of None changes nothing.

    After the block, torch's random state is as if the block had drawn nothing.
    """
    if seed is None:
        yield
        return
    on_gpu = draws_on_gpu(device)
    with torch.random.fork_rng([device] if on_gpu else []):
        # torch.manual_seed would seed all devices, but fork_rng does not restore all of them.
        # manual_seed's notes for missing devices would take a third of a small coder's step.
        generator = torch.default_generator
        if on_gpu:
            torch.cuda.init()
            # The index of torch.device("cuda") is None, although torch's type says int.
            index = cast(int | None, device.index)
            number = torch.cuda.current_device() if index is None else index
            generator = torch.cuda.default_generators[number]
        generator.manual_seed(seed)
        yield
