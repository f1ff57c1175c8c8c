import math
import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from tests.hub_server import Hub

# The tests' own Hub, named before anything imports huggingface_hub. Until a test asks for it,
# nothing listens there: whatever turns to the Hub unasked fails at once.
HUB = Hub()
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_TOKEN"] = "hf_of_nobody"
HF_HOME = tempfile.TemporaryDirectory(prefix="hf_home")
os.environ["HF_HOME"] = HF_HOME.name

if not torch.cuda.is_available():
    # sparsify's decoder for GPUs is its default wherever Triton is installed.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    # Our kernels run in Triton's interpreter, which must be asked for before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def _listening_hub() -> Hub:
    HUB.start()
    return HUB


@pytest.fixture
def hub(_listening_hub: Hub) -> Iterator[Hub]:
    """An empty Hub on loopback, which huggingface_hub takes for the Hub."""
    _listening_hub.clear()
    yield _listening_hub
    _listening_hub.clear()


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
