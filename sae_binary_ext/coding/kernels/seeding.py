"""Random numbers that do not depend on what was drawn before."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch

from sae_binary_ext.coding.kernels.processor import draws_on_gpu


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Generator[None]:
    """Within it torch draws from this seed; after it, on from where it was.

    Args:
        seed: None changes nothing.
        device: where the numbers are drawn.
    """
    if seed is None:
        yield
        return
    on_gpu = draws_on_gpu(device)
    with torch.random.fork_rng([device] if on_gpu else []):
        # torch.manual_seed reaches every device there is, of which fork_rng sets none back, and
        # where there is none notes down for each kind who called: a third of a small coder's step.
        (_gpu_generator(device) if on_gpu else torch.default_generator).manual_seed(seed)
        yield


def _gpu_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    # torch.device("cuda") has no index, whatever the type says.
    index = cast(int | None, device.index)
    return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
