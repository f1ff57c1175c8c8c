from pathlib import Path

import pytest

from sae_binary_ext.bundled.smollm2 import export_smollm2
from tests.small_models import save_gpt2, save_llama


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a two-layer Llama of random weights and a word tokeniser."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_llama(folder, layers=2)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 in a folder "gpt2". Seen from the parent folder, its path is its Hub name."""
    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    save_gpt2(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(pytestconfig: pytest.Config) -> Path:
    """A Hugging Face folder with SmolLM2. Pytest's cache keeps it from one run to the next."""
    assert pytestconfig.cache is not None
    return export_smollm2(pytestconfig.cache.mkdir("smollm2") / "model")
