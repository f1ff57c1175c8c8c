"""Random numbers that do not depend on what was drawn before."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


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
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
