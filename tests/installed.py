"""Check an installed package in an environment with none, one or both of the hosts.

python -P tests/installed.py [saelens] [sparsify]

Runs README's blocks of the hosts that are there, from a folder of its own, and asks for those that
are not. No test of pytest's: `make packages` calls it, each time in an environment that has the
package as a user installs it.
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
WIDTH, LAYERS, VOCABULARY = 576, 10, 60


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
    check_command_line()
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


def check_command_line() -> None:
    program = Path(sys.executable).with_name("sae-binary")
    printed = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert "sae-binary COMMAND --help" in printed, printed


def documented_blocks() -> dict[str, str]:
    """README's blocks by heading."""
    # Not by importing: this folder has one named sparsify, too.
    blocks = runpy.run_path(str(Path(__file__).with_name("documents.py")))["python_blocks"]()
    return {block.heading: block.code for block in blocks if block.document == "README.md"}


def run_block(code: str, host: str) -> None:
    import torch

    save_model(Path("model"))
    rows = torch.randint(2, VOCABULARY, (128, 16), generator=torch.Generator().manual_seed(0))
    names = for_saelens(rows) if host == "saelens" else for_sparsify(rows)
    exec(compile(code, host, "exec"), names)


def save_model(folder: Path) -> None:
    """A random model of SmolLM2's width, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def for_saelens(rows: Any) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from sae_lens import LoggingConfig

    texts = [" ".join(f"w{word}" for word in row) for row in rows.tolist()]
    Dataset.from_dict({"text": texts}).to_parquet("sentences/train.parquet")
    settings = {
        "model_name": "model",
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.8",
        "dataset_path": "sentences",
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 16,
        "train_batch_size_tokens": 64,
        "training_tokens": 640,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 16,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": "output",
    }
    return {"settings": settings, "activations": torch.randn(4, WIDTH)}


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
