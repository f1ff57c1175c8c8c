import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub_server import Hub, forget_connections

# The tests' own Hub. Its address is set before any import of huggingface_hub. The Hub listens once
# a test asks for it. Until then, any request to the Hub fails at once.
HUB = Hub()
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_TOKEN"] = "hf_of_nobody"
HF_HOME = tempfile.TemporaryDirectory(prefix="hf_home")
os.environ["HF_HOME"] = HF_HOME.name

if not torch.cuda.is_available():
    # If Triton is installed, sparsify uses its decoder for GPUs even without a GPU.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    # Our kernels then run in Triton's interpreter. Triton reads TRITON_INTERPRET on import.
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
    """An empty Hub on loopback. huggingface_hub sends its requests there."""
    _listening_hub.clear()
    forget_connections()
    yield _listening_hub
    _listening_hub.clear()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of three layers."""
    from tests.layer_coders import save_llama

    folder = tmp_path_factory.mktemp("tiny-llama")
    save_llama(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows of random words, which datasets.load_dataset reads."""
    from datasets import Dataset

    from tests.small_models import VOCABULARY

    folder = tmp_path_factory.mktemp("tiny_text")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, VOCABULARY, (600, 40), generator=generator)
    texts = [" ".join(f"w{word}" for word in row) for row in rows.tolist()]
    Dataset.from_dict({"text": texts}).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clustered_activations() -> torch.Tensor:
    """Activations, float32 [4000, 16]: sums of a few of 24 directions, with one large dimension."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(24, 16, generator=generator)
    present = (torch.rand(4000, 24, generator=generator) < 0.1).float()
    noise = 0.05 * torch.randn(4000, 16, generator=generator)
    activations = present @ directions + noise + 0.5
    activations[:, 3] *= math.sqrt(10)
    return activations
