"""Random numbers that do not depend on earlier draws."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch

from sae_binary_ext.coding.kernels.processor import draws_on_gpu


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Generator[None]:
    """Torch draws from this seed inside, and goes on after it as if nothing had been drawn.

    Args:
        seed: None changes nothing.
        device: the device on which numbers are drawn.
    """
    if seed is None:
        yield
        return
    on_gpu = draws_on_gpu(device)
    with torch.random.fork_rng([device] if on_gpu else []):
        # torch.manual_seed would seed all devices, which fork_rng does not restore, and its notes
        # for devices that are missing take a third of a small coder's step.
        (_gpu_generator(device) if on_gpu else torch.default_generator).manual_seed(seed)
        yield


def _gpu_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    # The index of torch.device("cuda") is None, although torch's type says int.
    index = cast(int | None, device.index)
    return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
