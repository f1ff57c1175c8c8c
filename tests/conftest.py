import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    # sparsify's decoder for GPUs is its default wherever Triton is installed.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clustered_activations() -> torch.Tensor:
    """[4000, 16] float32: sums of a few of 24 directions, a mean, and one loud dimension."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(24, 16, generator=generator)
    present = (torch.rand(4000, 24, generator=generator) < 0.1).float()
    noise = 0.05 * torch.randn(4000, 16, generator=generator)
    activations = present @ directions + noise + 0.5
    activations[:, 3] *= math.sqrt(10)
    return activations
