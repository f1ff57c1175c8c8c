"""Coders in the layouts that EleutherAI published compute what plain formulas give."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_binary_ext.checkpoints import CheckpointError, load_coder

D, LATENTS, K, TOKENS = 16, 64, 4, 30
LLAMA, SMOLLM, GPT2 = "meta-llama/Meta-Llama-3-8B", "HuggingFaceTB/SmolLM2-135M", "gpt2"
PYTHIA = "EleutherAI/pythia-160m"
# Fields that sparsify's configs had in June 2024, August 2024, November 2024 and 2025.
V0: dict[str, Any] = {"expansion_factor": 4, "normalize_decoder": True, "k": K, "signed": False}
LATE_2024: dict[str, Any] = {
    "expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "k": K, "multi_topk": False,
    "skip_connection": False,
}  # fmt: skip
TODAY: dict[str, Any] = {
    "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": LATENTS,
    "k": K, "multi_topk": False, "skip_connection": False, "transcode": False,
}  # fmt: skip
SKIPS: dict[str, Any] = {"skip_connection": True}
TRANSCODES: dict[str, Any] = {"transcode": True}
CLT: dict[str, Any] = {
    "n_targets": 0, "n_sources": 0, "normalize_io": False, "divide_cross_layer": False,
    "train_post_encoder": True, "post_encoder_scale": False, "coalesce_topk": "none",
    "topk_coalesced": True,
}  # fmt: skip


def run_of(model: str, **further: Any) -> dict[str, Any]:
    """The config.json of a run, with the fields that sparsify writes."""
    return {"sae": {}, "batch_size": 8, "layers": [], "model": model, "ctx_len": 2048, **further}


def tensors_of(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    tensors = {
        "encoder.weight": draw(LATENTS, D),
        "encoder.bias": draw(LATENTS),
        "W_dec": draw(LATENTS, D),
        "b_dec": draw(D),
    }
    return {**tensors, "W_skip": draw(D, D)} if config.get("skip_connection") else tensors


def write(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(config, dtype), folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**config, "d_in": D}))


def results(
    tensors: dict[str, Tensor], x: Tensor, *, centres: bool, groups: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes [tokens, latents] and outputs [tokens, D], computed by formulas in float64."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    read = x.double() - wide["b_dec"] if centres else x.double()
    pre = torch.relu(read @ wide["encoder.weight"].T + wide["encoder.bias"])
    code = torch.zeros_like(pre)
    if groups:
        best = pre.unflatten(-1, (K, -1)).argmax(-1) + torch.arange(K) * (LATENTS // K)
    else:
        best = pre.topk(K).indices
    code.scatter_(-1, best, pre.gather(-1, best))
    out = code @ wide["W_dec"] + wide["b_dec"]
    if "W_skip" in wide:
        out += x.double() @ wide["W_skip"].T
    return code, out


def of_saelens(coder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return coder.encode(x).double(), coder(x).double()


def of_sparsify(coder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        top = coder.encode(x)
        code = torch.zeros(len(x), LATENTS, dtype=top.top_acts.dtype)
        code.scatter_(-1, top.top_indices, top.top_acts)
        return code.double(), coder(x, y=torch.zeros_like(x)).sae_out.double()


@dataclass(frozen=True)
class Layout:
    """A published coder, and the properties that it must have after loading.

    Attributes:
        config: cfg.json, without d_in.
        run: config.json of its run, above its folder.
        hook, hook_out: SAELens' names. hook is None if SAELens cannot store the coder.
        folder: folder of the coder in the repository.
        centres: whether b_dec is subtracted from the input.
        hookpoint: argument of load_coder, or None for the folder.
        further: configs of other coders in the repository, by folder.
    """

    config: dict[str, Any]
    run: dict[str, Any] | None
    hook: str | None
    hook_out: str | None = None
    folder: str = "layers.5"
    centres: bool = True
    hookpoint: str | None = None
    further: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @property
    def is_transcoder(self) -> bool:
        return self.hook_out is not None


MLP = ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out", "layers.5.mlp")
RESID = "blocks.5.hook_resid_post"
LAYOUTS = {
    "June 2024": Layout(V0, run_of(LLAMA), RESID, further={"layers.6": V0, "embed_tokens": V0}),
    "num_latents": Layout({**V0, "num_latents": LATENTS}, run_of(PYTHIA), RESID),
    "multi_topk": Layout({**LATE_2024, "multi_topk": True}, run_of(PYTHIA), RESID),
    "transcode in the run's config": Layout(LATE_2024, run_of(PYTHIA, transcode=True), *MLP),
    "skip transcoder of January 2025": Layout(
        {**LATE_2024, **SKIPS}, run_of(LLAMA, transcode=True), *MLP
    ),
    "skip transcoder without its run": Layout(
        {**LATE_2024, **SKIPS}, None, "blocks.5.mlp.hook_in", "blocks.5.mlp.hook_out", MLP[2]
    ),
    "transcode in the run's sae": Layout(
        LATE_2024, run_of(PYTHIA, sae={**LATE_2024, **TRANSCODES}), *MLP, centres=False
    ),
    "autoencoder of such a run": Layout(LATE_2024, run_of(PYTHIA, transcode=False), RESID),
    "February 2025, before activation": Layout(
        {**LATE_2024, **SKIPS, **TRANSCODES}, run_of(SMOLLM), *MLP, centres=False
    ),
    "transcoder": Layout({**TODAY, **TRANSCODES}, run_of(SMOLLM), *MLP, centres=False),
    "skip transcoder": Layout(
        {**TODAY, **TRANSCODES, **SKIPS}, run_of(SMOLLM, sae=TODAY), *MLP, centres=False
    ),
    "best of a run on kl": Layout(
        TODAY, run_of(SMOLLM), RESID, folder="best/layers.5", further={"layers.5": TODAY}
    ),
    "best of a run on fvu": Layout(
        TODAY, run_of(SMOLLM), RESID, folder="best/layers.5/layers.5", hookpoint="best/layers.5",
        further={"layers.5": TODAY},
    ),
    "a seed of several": Layout(
        TODAY, run_of(SMOLLM, init_seeds=[0, 1]), RESID, folder="layers.5/seed0",
        further={"layers.5/seed1": TODAY},
    ),
    "a seed of several transcoders": Layout(
        LATE_2024, run_of(PYTHIA, transcode=True), MLP[0], MLP[1], "layers.5.mlp/seed1",
        further={"layers.5.mlp/seed0": LATE_2024},
    ),
    "one at the root": Layout(TODAY, None, RESID, folder=".", hookpoint="layers.5"),
    "one at the root, by SAELens' name": Layout(TODAY, None, RESID, folder=".", hookpoint=RESID),
    "one at the root beside its run": Layout(
        TODAY, run_of(SMOLLM, hookpoints=["layers.5"]), RESID, folder="."
    ),
    "groupmax": Layout({**TODAY, "activation": "groupmax"}, run_of(SMOLLM), None),
    # tests/checkpoints/test_hook_names.py tests the names of all modules.
    "model. before the hookpoint": Layout(
        TODAY, run_of(SMOLLM, loss_fn="kl"), "blocks.5.hook_mlp_out", folder="model.layers.5.mlp"
    ),
    "an activation": Layout(TODAY, run_of(GPT2), "blocks.5.mlp.hook_post", folder="h.5.mlp.act"),
}  # fmt: skip


def publish(layout: Layout, repo: Path) -> Path:
    write(repo / layout.folder, layout.config)
    for name, config in layout.further.items():
        write(repo / name, config)
    if layout.run is not None:
        (repo / "config.json").write_text(json.dumps(layout.run))
    return repo


@pytest.mark.parametrize("name", LAYOUTS)
def test_saelens_has_the_codes_and_outputs_of_the_formulas(name: str, tmp_path: Path):
    layout = LAYOUTS[name]
    repo = publish(layout, tmp_path / "repo")
    chosen = layout.hookpoint or layout.folder
    if layout.hook is None:
        with pytest.raises(
            CheckpointError, match=r"groupmax.*no such architecture.*host='sparsify'"
        ):
            load_coder(repo, chosen)
        return
    coder = load_coder(repo, chosen)
    x = torch.randn(TOKENS, D)
    expected = results(tensors_of(layout.config), x, centres=layout.centres)
    torch.testing.assert_close(of_saelens(coder, x), expected, atol=1e-4, rtol=1e-4)
    metadata = coder.cfg.metadata
    model = layout.run and layout.run["model"]
    assert (metadata.hook_name, metadata.hook_name_out) == (layout.hook, layout.hook_out)
    assert metadata.model_name == model


@pytest.mark.parametrize("name", LAYOUTS)
def test_sparsify_has_the_codes_and_outputs_of_the_formulas(name: str, tmp_path: Path):
    layout = LAYOUTS[name]
    repo = publish(layout, tmp_path / "repo")
    coder = load_coder(repo, layout.hookpoint or layout.folder, host="sparsify")
    x = torch.randn(TOKENS, D)
    groups = layout.config.get("activation") == "groupmax"
    expected = results(tensors_of(layout.config), x, centres=layout.centres, groups=groups)
    torch.testing.assert_close(of_sparsify(coder, x), expected, atol=1e-4, rtol=1e-4)
    assert coder.cfg.transcode is layout.is_transcoder


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**V0, "signed": True}, r"signed=True.*negative.*git\+https.*@signed"),
        ({**LATE_2024, "batch_topk": True, "input_unit_norm": False}, r"a fork.*batch_topk \("),
        ({**LATE_2024, "input_unit_norm": True}, r"a fork of sparsify with input_unit_norm"),
        ({**TODAY, **TRANSCODES, **CLT}, r"cross-layer transcoder.*git\+https.*@clt"),
        ({**TODAY, "field_of_2030": 1}, r"unknown fields \['field_of_2030'\]"),
    ],
)
def test_what_no_host_has_is_refused_with_what_it_is(
    host: Any, config: dict[str, Any], words: str, tmp_path: Path
):
    write(tmp_path / "layers.5", config)
    with pytest.raises(CheckpointError, match=words):
        load_coder(tmp_path, "layers.5", host=host)


def test_fields_of_forks_that_are_off_change_nothing(tmp_path: Path):
    config = {**LATE_2024, "batch_topk": False, "sample_topk": False, "input_unit_norm": False}
    write(tmp_path / "layers.5", config)
    x = torch.randn(TOKENS, D)
    found = of_saelens(load_coder(tmp_path, "layers.5"), x)
    expected = results(tensors_of(config), x, centres=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "run"),
    [
        (LATE_2024, run_of(PYTHIA, transcode=True, sae={**LATE_2024, "transcode": False})),
        (TODAY, run_of(PYTHIA, transcode=True)),
    ],
    ids=["the run itself", "the run and the coder"],
)
def test_files_that_contradict_each_other_are_refused(
    config: dict[str, Any], run: dict[str, Any], tmp_path: Path
):
    write(tmp_path / "layers.5.mlp", config)
    (tmp_path / "config.json").write_text(json.dumps(run))
    with pytest.raises(CheckpointError, match=r"transcode=False, and the run's config.json says T"):
        load_coder(tmp_path, "layers.5.mlp")


def test_what_the_coder_s_own_file_says_wins(tmp_path: Path):
    write(tmp_path / "layers.5", TODAY)
    run = run_of(SMOLLM, sae={**TODAY, "k": 50, "transcode": True, "skip_connection": True})
    (tmp_path / "config.json").write_text(json.dumps(run))
    coder = load_coder(tmp_path, "layers.5", host="sparsify")
    assert (coder.cfg.k, coder.cfg.transcode, coder.W_skip) == (K, False, None)


def test_a_coder_s_own_folder_knows_its_run_too(tmp_path: Path):
    layout = LAYOUTS["transcode in the run's config"]
    repo = publish(layout, tmp_path / "repo")
    metadata = load_coder(repo / layout.folder).cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == (layout.hook, PYTHIA)


def test_a_model_s_config_above_a_coder_is_no_run_s(tmp_path: Path):
    write(tmp_path / "layers.5", TODAY)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "transcode": True}))
    assert load_coder(tmp_path, "layers.5").cfg.metadata.hook_name == RESID


def test_bfloat16_weights_stay_bfloat16_and_agree_with_the_formulas(tmp_path: Path):
    """sparsify adds the encoder's bias before rounding, and SAELens' own TopK adds it after."""
    write(tmp_path / "layers.5", TODAY, torch.bfloat16)
    x = torch.randn(TOKENS, D).bfloat16()
    expected = results(tensors_of(TODAY, torch.bfloat16), x, centres=True)
    for host, read in (("saelens", of_saelens), ("sparsify", of_sparsify)):
        coder = load_coder(tmp_path, "layers.5", host=host)  # type: ignore[arg-type]
        assert coder.W_dec.dtype == torch.bfloat16
        found = read(coder, x)
        # bfloat16 rounds the reconstruction, and the differences of its parts, to 8 bits.
        error = (found[1] - expected[1]).pow(2).sum() / expected[1].pow(2).sum()
        assert error < 1e-2
