"""Importing the package in every order, each in a fresh interpreter."""

import subprocess
import sys
import time

import pytest

CHECK = """
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
assert "binary" in SAE_CLASS_REGISTRY
assert {"binary", "binary_entropy"} <= set(SAE_TRAINING_CLASS_REGISTRY)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# A cold import of SAELens takes up to half a minute, so most orders are not among the fast tests.
@pytest.mark.parametrize(
    "imports",
    [
        "import sae_lens; import sae_binary_ext",
        *(
            pytest.param(imports, marks=pytest.mark.integration)
            for imports in (
                "import sae_binary_ext; import sae_lens",
                "import sae_binary_ext.saelens",
                "from sae_binary_ext.saelens.entropy import BinaryEntropyTrainingSAEConfig",
                "import sae_binary_ext; sae_binary_ext.register(); import sae_lens; "
                "sae_binary_ext.register(); "
                "from sae_binary_ext.saelens.register import register; register()",
            )
        ),
    ],
)
def test_any_import_order_registers_once(imports: str):
    result = run(f"{imports}\n{CHECK}")
    assert result.returncode == 0, result.stderr


@pytest.mark.integration
def test_without_the_package_saelens_is_as_it_was():
    result = run(f"import sae_lens\n{CHECK}")
    assert "AssertionError" in result.stderr


def test_importing_is_light():
    code = (
        "import sys, sae_binary_ext\n"
        "heavy = {'torch', 'sae_lens', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started = time.perf_counter()
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - started < 2


def test_a_missing_host_says_what_to_install():
    # None in sys.modules makes an import fail as that of a missing package does.
    code = "import sys; sys.modules['sae_lens'] = None; import sae_binary_ext.saelens"
    result = run(code)
    assert "pip install 'sae_binary_ext[saelens]'" in result.stderr


@pytest.mark.integration
def test_stock_training_is_bitwise_the_same_with_the_package():
    train = """
import hashlib, itertools, torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
torch.manual_seed(0)
data = torch.randn(10, 100, 8)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=4))
trainer = SAETrainer(
    cfg=SAETrainerConfig(total_training_samples=3000, train_batch_size_samples=100, lr=1e-3,
                         lr_end=1e-3, logger=LoggingConfig(log_to_wandb=False)),
    sae=sae, data_provider=itertools.cycle(data))
trainer.fit()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in sae.parameters())).hexdigest())
"""
    without, registered = run(train), run("import sae_binary_ext\n" + train)
    assert without.stdout == registered.stdout != "", without.stderr + registered.stderr
