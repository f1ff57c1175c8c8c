"""The commands that read text measure a coder of each architecture that SAELens can attach."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

import sae_binary_ext.saelens  # noqa: F401  (registers its architectures)
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands import (
    AblateConfig,
    EntropyConfig,
    TransferConfig,
    run_ablate,
    run_entropy,
    run_transfer,
)
from sae_binary_ext.commands.compare.compare_run import run_compare
from sae_binary_ext.commands.interpret.config import TextAmount
from sae_binary_ext.commands.interpret.windows import read_latents
from sae_binary_ext.measure.reading import open_coders
from sae_binary_ext.measure.refit import refit
from sae_binary_ext.measure.text import Text
from sae_binary_ext.settings import TextConfig
from tests.integration.compare_helpers import LATENTS, WIDTH, config_of

pytestmark = pytest.mark.integration

CONTEXT, HEADS = 16, 4
# Each text fills a row exactly, so that TOKENS are the tokens that the commands read.
TEXTS = [" ".join(f"w{(7 * row + i) % 58 + 2}" for i in range(CONTEXT - 1)) for row in range(32)]
TOKENS = torch.tensor([[0, *(int(word[1:]) for word in text.split())] for text in TEXTS])
STREAM = {"hook_name": "blocks.0.hook_resid_post"}
MLP = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
# Fields of each architecture that have no default.
NEEDED: dict[str, dict[str, Any]] = {
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "matching_pursuit": {"max_iterations": 3, "residual_threshold": 0.0},
    "temporal": {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 5},
    "binary": {"k": 5},
    "binary_transcoder": {"k": 5},
    "topk_transcoder": {"k": 5},
}
HOOK_Z = {"hook_name": "blocks.0.attn.hook_z"}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "layer_norm": ("standard", {"normalize_activations": "layer_norm"}, STREAM),
    "constant_norm": ("topk", {"k": 5, "normalize_activations": "constant_norm_rescale"}, STREAM),
    "binary layer_norm": ("binary", {"k": 5, "normalize_activations": "layer_norm"}, STREAM),
    "binary skip": ("binary_transcoder", {"k": 5, "skip_connection": True}, MLP),
    "hook_z": ("standard", {"reshape_activations": "hook_z"}, HOOK_Z),
    "binary hook_z": ("binary", {"k": 5, "reshape_activations": "hook_z"}, HOOK_Z),
    "hook_q": ("standard", {}, {"hook_name": "blocks.0.attn.hook_q"}),
    "head": ("topk", {"k": 5}, {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 2}),
    "binary head": (
        "binary",
        {"k": 5},
        {"hook_name": "blocks.1.attn.hook_v", "hook_head_index": 3},
    ),
}


def make(case: str) -> SAE[Any]:
    """A coder with random weights."""
    if case in VARIANTS:
        architecture, fields, place = VARIANTS[case]
    else:
        architecture, fields = case, NEEDED.get(case, {})
        place = MLP if "transcoder" in case else STREAM
    coder_class, config_class = SAE_CLASS_REGISTRY[architecture]
    d_in = WIDTH // HEADS if "hook_head_index" in place else WIDTH
    sizes: dict[str, Any] = {"d_in": d_in, "d_sae": LATENTS}
    if place is MLP:
        sizes |= {"d_out": WIDTH, "apply_b_dec_to_input": False}
    metadata = SAEMetadata(context_size=CONTEXT, prepend_bos=True, **place)
    torch.manual_seed(0)
    build: Any = config_class
    coder: Any = coder_class(build(**sizes, **fields, metadata=metadata))
    with torch.no_grad():
        for parameter in coder.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.normal_(std=0.1)
        if hasattr(coder, "threshold"):
            coder.threshold.abs_()
    return coder


HOOKED, BRIDGE = "HookedTransformer", None
CASES = [(case, HOOKED) for case in (*SAE_CLASS_REGISTRY, *VARIANTS)]
CASES += [(case, BRIDGE) for case in ("temporal", *VARIANTS)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, words in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(words)
    return folder


@pytest.fixture
def model(tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> HookedSAETransformer:
    """The tiny GPT-2, loaded by SAELens. The name "gpt2" leads to its folder, not to the Hub."""
    monkeypatch.chdir(tiny_gpt2_folder.parent)
    return HookedSAETransformer.from_pretrained_no_processing("gpt2", device="cpu")


def save(case: str, folder: Path, **metadata: Any) -> str:
    coder = make(case)
    for name, value in ({"model_name": "gpt2"} | metadata).items():
        coder.cfg.metadata[name] = value
    coder.save_model(folder)
    return str(folder)


def rows_read(coder: SAE[Any], cached: Tensor) -> Tensor:
    """Activations of a hook, [rows, context, width], as SAELens passes them to the coder."""
    head = coder.cfg.metadata.hook_head_index
    return cached[:, :, head] if head is not None else cached.flatten(2)


@torch.no_grad()
def plain_figures(coder: Any, model: HookedSAETransformer) -> dict[str, float]:
    """FVU, L0 and cross-entropy with the coder in the model, computed by their definitions."""
    place = coder.cfg.metadata
    clean, cache = model.run_with_cache(TOKENS)
    coder.turn_off_forward_pass_hook_z_reshaping()
    inputs = rows_read(coder, cache[place.hook_name])
    output_hook = place.hook_name_out or place.hook_name
    targets = rows_read(coder, cache[output_hook])
    # A transcoder's forward pass includes its skip connection and predicts its target.
    output = coder(inputs)
    codes = coder.encode(inputs)[:, 1:]
    x = targets[:, 1:].flatten(0, 1).double()
    error = (output[:, 1:].flatten(0, 1) - x).square().sum()

    def put(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        if place.hook_head_index is None:
            changed[:, 1:] = output[:, 1:].view_as(activation[:, 1:])
        else:
            changed[:, 1:, place.hook_head_index] = output[:, 1:]
        return changed

    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(output_hook, put)])
    chosen = logits[:, 1:-1].log_softmax(-1).gather(-1, TOKENS[:, 2:, None])
    assert clean.shape == logits.shape
    return {
        "fvu": (error / (x - x.mean(0)).square().sum()).item(),
        "l0": (codes != 0).float().sum(-1).mean().item(),
        "cross_entropy_spliced": -chosen.mean().item(),
    }


@pytest.mark.parametrize(("case", "class_name"), CASES)
def test_figures_are_those_of_the_definitions(
    case: str,
    class_name: str | None,
    model: HookedSAETransformer,
    text: Path,
    tiny_gpt2_folder: Path,
    tmp_path: Path,
):
    name = "gpt2" if class_name else str(tiny_gpt2_folder)
    source = save(case, tmp_path / "a", model_class_name=class_name, model_name=name)
    config = config_of(tiny_gpt2_folder, text, tmp_path / "out", tokens=480, spliced_tokens=480)
    config.model = None
    run_compare([source], config)
    (found,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["coders"]
    for figure, expected in plain_figures(make(case), model).items():
        assert found[figure]["value"] == pytest.approx(expected, rel=1e-4), figure


def test_a_coder_of_hook_z_is_as_attached_by_saelens(
    model: HookedSAETransformer, text: Path, tiny_gpt2_folder: Path, tmp_path: Path
):
    source = save("hook_z", tmp_path / "a")
    config = config_of(tiny_gpt2_folder, text, tmp_path / "out", tokens=480, spliced_tokens=480)
    config.first_position = 0
    run_compare([source], config)
    (found,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["coders"]
    coder = SAE.load_from_disk(source)
    logits, cache = model.run_with_cache_with_saes(TOKENS, saes=[coder])
    codes = cache["blocks.0.attn.hook_z.hook_sae_acts_post"]
    assert found["l0"]["value"] == pytest.approx((codes != 0).float().sum(-1).mean().item())
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])
    assert found["cross_entropy_spliced"]["value"] == pytest.approx(losses.mean().item(), rel=1e-5)


ANALYSES: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = [
    (run_entropy, EntropyConfig, {}),
    (run_ablate, AblateConfig, {"groups": 2, "spliced_tokens": 200}),
    (run_transfer, TransferConfig, {"layers": [0, 1]}),
]


@pytest.mark.parametrize("case", ["temporal", "skip_transcoder", "binary skip", "hook_z", "head"])
def test_other_readers_take_them_too(case: str, text: Path, tiny_gpt2_folder: Path, tmp_path: Path):
    source = save(case, tmp_path / "a", model_name=str(tiny_gpt2_folder))
    for run, config, options in ANALYSES:
        if run is run_transfer and case == "binary skip":
            options = options | {"layers": [0]}
        settings = config(
            dataset=str(text),
            output=tmp_path / run.__name__,
            tokens=480,
            context_size=CONTEXT,
            **options,
        )
        run([source], settings)
    config = TextConfig(dataset=str(text), context_size=CONTEXT)
    amount = TextAmount(400, CONTEXT, 1, 5, 10)
    read_latents(open_coders([source], config, tmp_path), amount, tmp_path / "read.safetensors", ())


@pytest.mark.parametrize("case", ["binary hook_z", "binary head", "binary layer_norm"])
def test_refit_reads_heads(case: str, text: Path, tiny_gpt2_folder: Path, tmp_path: Path):
    source = save(case, tmp_path / "a", model_name=str(tiny_gpt2_folder))
    done = refit(source, tmp_path / "new", Text(str(text), tokens=300))
    assert done.fvu_after < done.fvu_before
    before, after = load_coder(source).cfg, load_coder(tmp_path / "new").cfg
    assert after.reshape_activations == before.reshape_activations
    assert after.metadata.hook_head_index == before.metadata.hook_head_index
