"""Check an installed package in an environment with none, one or both of the hosts.

python -P tests/installed.py [saelens] [sparsify]

Runs README's blocks for the hosts that are installed, in a new folder. For a missing host, checks
the error. pytest does not run this: `make packages` does, in environments in which the package is
installed as a user installs it.
"""

import importlib
import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCK_OF_HOST = {"saelens": "In SAELens", "sparsify": "In sparsify"}
MODULE_OF_HOST = {"saelens": "sae_lens", "sparsify": "sparsify"}


def main(hosts: list[str]) -> None:
    import sae_binary_ext

    folder = Path(sae_binary_ext.__file__).parent
    assert "site-packages" in folder.parts, folder
    assert (folder / "py.typed").is_file()
    heavy = {"torch", "sae_lens", "sparsify", "transformers"} & set(sys.modules)
    assert not heavy, heavy
    for host, module in MODULE_OF_HOST.items():
        assert (importlib.util.find_spec(module) is not None) == (host in hosts), host
        if host not in hosts:
            check_that_it_says_what_to_install(host)
    check_command_line(hosts)
    blocks = documented_blocks()
    for host in hosts:
        run_block(blocks[BLOCK_OF_HOST[host]], host)
    print(f"{sae_binary_ext.__version__} with {', '.join(hosts) or 'no host'}: all well")


def check_that_it_says_what_to_install(host: str) -> None:
    said = ""
    try:
        importlib.import_module(f"sae_binary_ext.{host}")
    except ModuleNotFoundError as error:
        said = str(error)
    assert f"pip install 'sae_binary_ext[{host}]'" in said, said


def check_command_line(hosts: list[str]) -> None:
    program = Path(sys.executable).with_name("sae-binary")
    printed = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert "sae-binary COMMAND --help" in printed, printed
    if "saelens" not in hosts:
        command = [program, "compare", "coder"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        assert "pip install 'sae_binary_ext[saelens]'" in said, said
        assert "Traceback" not in said, said


def functions_of(name: str) -> dict[str, Any]:
    """Run a file of this folder; return its names. Imports would find tests/sparsify first."""
    return runpy.run_path(str(Path(__file__).with_name(name)))


def documented_blocks() -> dict[str, str]:
    """README's blocks of Python, by heading."""
    blocks = functions_of("documents.py")["python_blocks"]()
    return {block.heading: block.code for block in blocks if block.document == "README.md"}


def run_block(code: str, host: str) -> None:
    import torch

    helpers = functions_of("small_models.py")
    helpers["save_wide_model"](Path("model"))
    rows = torch.randint(2, 60, (128, 16), generator=torch.Generator().manual_seed(0))
    if host == "saelens":
        save_text(rows, Path("sentences"))
        settings = helpers["autoencoder_settings"]("model", "sentences")
        names = {"settings": settings, "activations": torch.randn(4, 576)}
    else:
        names = for_sparsify(rows)
    exec(compile(code, host, "exec"), names)


def save_text(rows: Any, folder: Path) -> None:
    from datasets import Dataset

    texts = [" ".join(f"w{word}" for word in row) for row in rows.tolist()]
    Dataset.from_dict({"text": texts}).to_parquet(folder / "train.parquet")


def for_sparsify(rows: Any) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModel

    tokens = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    return {"tokens": tokens, "model": AutoModel.from_pretrained("model", dtype=torch.float32)}


if __name__ == "__main__":
    os.environ |= {"WANDB_MODE": "disabled", "SPARSIFY_DISABLE_TRITON": "1"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            main(sys.argv[1:])
        finally:
            os.chdir(here)
