"""Importing the package and the hosts in any order registers our coders, in a new process."""

import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sae_binary_ext.registration import Host, warn_if_untested
from tests.fresh import run_fresh

CHECK = """
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
assert "binary" in SAE_CLASS_REGISTRY
assert {"binary", "binary_entropy"} <= set(SAE_TRAINING_CLASS_REGISTRY)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# Each case imports SAELens' libraries, which is slow. Only the first is among the fast tests.
@pytest.mark.integration
@pytest.mark.parametrize(
    "imports",
    [
        "import sae_lens; import sae_binary_ext",
        "from sae_binary_ext.saelens.binary_entropy import BinaryEntropyTrainingSAEConfig",
        "import sae_binary_ext; sae_binary_ext.register(); import sae_lens; "
        "sae_binary_ext.register(); "
        "from sae_binary_ext.saelens.register import register; register()",
    ],
)
def test_any_import_order_registers_once(imports: str):
    result = run_fresh(f"{imports}\n{CHECK}")
    assert result.exit_code == 0, result.stderr


SPARSIFY_CHECK = """
from sparsify import SparseCoder, SparseCoderConfig
config = SparseCoderConfig.from_dict({"activation": "topk_binary", "k": 2, "num_latents": 8})
assert type(SparseCoder(4, config)).__name__ == "BinarySparseCoder"
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    "imports",
    [
        "from sae_binary_ext.sparsify.config import BinarySparseCoderConfig",
        "import sparsify; from sparsify import SparseCoder as Early; import sae_binary_ext; "
        "new = Early.__new__; "
        "from sae_binary_ext.sparsify.register import register; register(); "
        "assert sparsify.SparseCoder.__new__ is new",
    ],
)
def test_any_import_order_registers_with_sparsify_once(imports: str):
    result = run_fresh(f"{imports}\n{SPARSIFY_CHECK}")
    assert result.exit_code == 0, result.stderr


@pytest.mark.integration
def test_without_the_package_saelens_is_as_it_was():
    result = run_fresh(f"import sae_lens\n{CHECK}")
    assert "AssertionError" in result.stderr


def test_importing_is_light():
    code = (
        "import sys, sae_binary_ext\n"
        "heavy = {'torch', 'sae_lens', 'sparsify', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started = time.perf_counter()
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(("host", "adapter"), [("sae_lens", "saelens"), ("sparsify", "sparsify")])
def test_a_missing_host_says_what_to_install(host: str, adapter: str):
    # With None in sys.modules, an import fails as if the package were missing.
    code = f"import sys; sys.modules['{host}'] = None; import sae_binary_ext.{adapter}"
    result = run(code)
    assert f"pip install 'sae_binary_ext[{adapter}]'" in result.stderr


def save_second_papers_coder(folder: Path):
    """Save a coder in the second paper's format, which belongs to neither host."""
    folder.mkdir()
    coder = {
        "encoder.weight": torch.randn(8, 4),
        "encoder.bias": torch.zeros(8),
        "decoder.weight": torch.randn(4, 8),
        "decoder.bias": torch.zeros(4),
    }
    torch.save(coder, folder / "model.pt")
    config = {"params": {"inner_expand_rate": 2, "binarization_type": "sign"}}
    (folder / "config.pkl").write_bytes(pickle.dumps(config))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("host", "adapter", "command"),
    [
        ("sae_lens", "saelens", "compare coder"),
        ("sae_lens", "saelens", "demo"),
        ("sae_lens", "saelens", "entropy coder"),
        ("sae_lens", "saelens", "convert coder out"),
        ("sparsify", "sparsify", "convert coder out --host sparsify"),
    ],
)
def test_a_command_says_which_host_to_install(
    host: str, adapter: str, command: str, tmp_path: Path
):
    save_second_papers_coder(tmp_path / "coder")
    code = (
        f"import os, sys; sys.modules['{host}'] = None; os.chdir('{tmp_path}')\n"
        f"from sae_binary_ext.cli import main; main({command.split()!r})"
    )
    result = run(code)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"sae-binary {command.split()[0]}: sae_binary_ext.{adapter} needs")
    assert f"pip install 'sae_binary_ext[{adapter}]'" in line


@pytest.mark.integration
def test_stock_training_is_bitwise_the_same_with_the_package():
    without = run_fresh(
        "import sys; from tests.saelens.helpers import train_stock_coder\n"
        "digest = train_stock_coder(); assert 'sae_binary_ext' not in sys.modules; print(digest)"
    )
    from tests.saelens.helpers import train_stock_coder  # importing SAELens takes seconds

    assert without.stdout.split()[-1:] == [train_stock_coder()], without.stderr


@pytest.mark.parametrize(("version", "warns"), [("1.3.3", False), ("1.3.2", True), ("1.4", True)])
def test_an_untested_host_version_is_named(
    version: str, warns: bool, caplog: pytest.LogCaptureFixture
):
    host = ModuleType("host")
    host.__version__ = version
    warn_if_untested(host, oldest="1.3.3", below="1.4")
    assert (f"this is {version}" in caplog.text) == warns


def hosts() -> list[Host]:
    from sae_binary_ext.saelens import private
    from sae_binary_ext.sparsify import register

    return [private.HOST, register.HOST]


def test_each_private_name_is_looked_up(monkeypatch: pytest.MonkeyPatch):
    for host in hosts():
        host.check()
        for name in host.private:
            module, _, path = name.partition(":")
            with monkeypatch.context() as changes:
                changes.delattr(f"{module}.{path}")
                with pytest.raises(ImportError, match=f"has no {name}, which.*{host.newest}"):
                    host.check()


# Code that removes names that a later host may lack. Stock coders train without these names.
GONE = {
    "sae_lens": """
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
MultiSAETrainer._estimate_scales = MultiSAETrainer._estimate_scaling_factors
del MultiSAETrainer._estimate_scaling_factors
""",
    "sparsify": """
import sparsify.trainer
sparsify.trainer.DistributedDataParallel = sparsify.trainer.DDP
del sparsify.trainer.DDP
""",
}
ASKED: dict[str, list[str]] = {
    "sae_lens": [
        "BinarySAE(BinarySAEConfig(d_in=8, d_sae=16, k=4))",
        "TrainingSAE.from_dict(BinaryEntropyTrainingSAEConfig(d_in=8, d_sae=16).to_dict())",
        "TrainingSAE.from_dict(TopKTranscoderTrainingSAEConfig(d_in=8, d_sae=16).to_dict())",
        "SAE.from_dict(BinaryTranscoderConfig(d_in=8, d_sae=16, k=4).to_dict())",
    ],
    "sparsify": [
        "BinarySparseCoder(8, BinarySparseCoderConfig(num_latents=16))",
        "SparseCoder(8, BinarySparseCoderConfig(num_latents=16))",
        "SparseCoder(8, SparseCoderConfig.from_dict({'activation': 'binary', 'num_latents': 16}))",
    ],
}
IMPORTS = {
    "sae_lens": "from sae_lens import SAE, TrainingSAE; from sae_binary_ext.saelens import *",
    "sparsify": "from sparsify import *; from sae_binary_ext.sparsify import *",
}
TRAIN = {
    "sae_lens": "from tests.saelens.helpers import train_stock_coder; train_stock_coder()",
    "sparsify": """
import tempfile
from pathlib import Path
import torch
from sparsify import SparseCoderConfig
from tests.sparsify.trainers import trainer_on
with tempfile.TemporaryDirectory() as folder:
    rows = torch.arange(40).view(20, 2)
    sae = SparseCoderConfig(num_latents=64, k=4)
    trainer = trainer_on(torch.randn(40, 16), rows, sae, Path(folder))
    trainer.fit()
    assert type(next(iter(trainer.saes.values()))).__name__ == "SparseCoder"
""",
}


@pytest.mark.integration
@pytest.mark.parametrize("host", GONE)
def test_a_host_without_a_private_name_trains_its_own_coders(host: str):
    asked = "".join(
        f"""
try:
    {code}
except ImportError as error:
    assert "which sae_binary_ext" in str(error), error
else:
    raise AssertionError({code!r})
"""
        for code in ASKED[host]
    )
    code = f"import {host}\n{GONE[host]}\nimport sae_binary_ext\n{IMPORTS[host]}\n{asked}\n"
    result = run_fresh(code + TRAIN[host])
    assert result.exit_code == 0, result.stderr
    assert "Stock coders work as before" in result.stderr


MAKE = {
    "sae_lens": "from sae_lens import TopKSAE, TopKSAEConfig\n"
    "coder = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=4))",
    "sparsify": "from sparsify import SparseCoder, SparseCoderConfig\n"
    "coder = SparseCoder(8, SparseCoderConfig(num_latents=16, k=4))",
}
LACKING = {"sae_lens": "sae_lens.training.multi_sae_trainer", "sparsify": "sparsify.fused_encoder"}


@pytest.mark.parametrize("host", LACKING)
def test_a_host_that_lacks_a_module_is_imported_all_the_same(host: str):
    code = (
        f"import {host}, sys; sys.modules['{LACKING[host]}'] = None\n"
        f"import sae_binary_ext, torch\n{MAKE[host]}\nprint(type(coder(torch.randn(4, 8))))"
    )
    result = run_fresh(code)
    assert result.exit_code == 0, result.stderr
    assert f"No binary coders in {host}" in result.stderr
