"""Coders of other libraries are refused with an error that names their kind and loader."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder
from sae_binary_ext.cli import main
from tests.hub_server import Hub

D, LATENTS, K = 8, 32, 4
# For each layout: its files, its name in the error, and the advice in the error.
LAYOUTS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "Gemma Scope": (
        ("layer_20/width_16k/average_l0_71/params.npz", "README.md"),
        "Gemma Scope SAEs: layer_20/width_16k/average_l0_71/params.npz",
        "SAE.from_pretrained('gemma-scope-2b-pt-res', 'layer_20/width_16k/average_l0_71')",
    ),
    "Gemma Scope, of no release": (
        ("layer_20/width_16k/average_l0_72/params.npz",),
        "Gemma Scope SAEs",
        "SAE.from_pretrained('USER/REPOSITORY', 'layer_20/width_16k/average_l0_72', "
        "converter=gemma_2_sae_huggingface_loader)",
    ),
    "Gemma Scope's transcoders": (
        ("transcoders/layer_0/width_16k/average_l0_76/params.npz",),
        "Gemma Scope transcoders",
        "converter=gemma_2_transcoder_huggingface_loader",
    ),
    "one of Gemma Scope's files": (("params.npz",), "a Gemma Scope SAE", "Put the tensors"),
    "Gemma Scope 2": (
        ("resid_post/layer_17_width_16k_l0_big/params.safetensors",
         "resid_post/layer_17_width_16k_l0_big/config.json"),
        "Gemma Scope 2 coders",
        "SAE.from_pretrained('gemma-scope-2-4b-pt-res', 'layer_17_width_16k_l0_big')",
    ),
    "Gemma Scope 2's cross-layer transcoders": (
        ("clt/width_262k_l0_big/params_layer_3.safetensors", "clt/width_262k_l0_big/config.json"),
        "Gemma Scope 2 cross-layer transcoders",
        "'clt/width_262k_l0_big/params_layer_3', converter=gemma_3_sae_huggingface_loader",
    ),
    "Llama Scope": (
        ("Llama3_1-8B-Base-L15R-8x/hyperparams.json",
         "Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors"),
        "Llama Scope SAEs",
        "SAE.from_pretrained('llama_scope_lxr_8x', 'l15r_8x')",
    ),
    "OpenMOSS": (
        ("800M-Slimpajama-0-OpenR1-Math-220k/L0R/config.json",
         "800M-Slimpajama-0-OpenR1-Math-220k/L0R/sae_weights.safetensors"),
        "coders of OpenMOSS' Language-Model-SAEs",
        "SAE.from_pretrained('llama_scope_r1_distill', 'l0r_800m_slimpajama')",
    ),
    "dictionary_learning": (
        ("resid_post_layer_12/trainer_1/ae.pt", "resid_post_layer_12/trainer_1/config.json"),
        "SAEs of dictionary_learning: resid_post_layer_12/trainer_1/ae.pt",
        "converter=dictionary_learning_sae_huggingface_loader_1",
    ),
    "dictionary_learning, one coder's folder": (
        ("ae.pt", "config.json"), "an SAE of dictionary_learning", "Put the tensors"
    ),
    "circuit-tracer": (
        ("config.yaml", "wandb-config.yaml", "layer_0.safetensors", "layer_1.safetensors"),
        "transcoders of circuit-tracer: layer_0.safetensors",
        "SAE.from_pretrained('mwhanna-qwen3-4b-transcoders', 'layer_0') (5 more releases",
    ),
    "circuit-tracer's cross-layer transcoders": (
        ("config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_1.safetensors"),
        "cross-layer transcoders of circuit-tracer",
        "SAE.from_pretrained('mntss-gemma-2-2b-2.5m-clt-as-per-layer', 'layer_0')",
    ),
    "Qwen Scope": (
        ("config.json", "layer5.sae.pt"),
        "Qwen Scope SAEs: layer5.sae.pt",
        "SAE.from_pretrained('qwen-scope-3-1.7b-base-w32k-l50', 'layer5') (13 more releases",
    ),
    "Goodfire": (
        ("Llama-3.3-70B-Instruct-SAE-l50.pt",),
        "Goodfire's SAEs",
        "SAE.from_pretrained('goodfire-llama-3.3-70b-instruct', 'layer_50')",
    ),
    "qresearch": (
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",),
        "SAEs of qresearch",
        "SAE.from_pretrained('deepseek-r1-distill-llama-8b-qresearch', "
        "'blocks.19.hook_resid_post')",
    ),
    "temporal": (
        ("gemma-2-2B/layer_12/temporal/conf.yaml",
         "gemma-2-2B/layer_12/temporal/latest_ckpt.safetensors"),
        "temporal SAEs",
        "SAE.from_pretrained('temporal-sae-gemma-2-2b', 'blocks.12.hook_resid_post')",
    ),
    "sharded, of SAELens": (
        ("s/cfg.json", "s/sae_weights-00001-of-00002.safetensors",
         "s/sae_weights-00002-of-00002.safetensors", "s/sae_weights.safetensors.index.json"),
        "weights in several files",
        "save_file(tensors, folder / 'sae_weights.safetensors')",
    ),
    "sharded, of sparsify": (
        ("layers.1/cfg.json", "layers.1/sae-00001-of-00002.safetensors"),
        "weights in several files",
        "save_file(tensors, folder / 'sae.safetensors')",
    ),
    "SAELens' pickles": (
        ("final_sparse_autoencoder_gpt2-small_blocks.0.hook_resid_pre_24576.pt",
         "final_sparse_autoencoder_gpt2-small_blocks.0.hook_resid_pre_24576"
         "_log_feature_sparsity.pt"),
        "pickles of SAELens' first months",
        "SAE.from_pretrained('gpt2-small-res-jb', 'blocks.0.hook_resid_pre')",
    ),
    "SAELens' pickles of another model": (
        ("sparse_autoencoder_gemma-2b_blocks.6.hook_resid_post_16384.pt",),
        "pickles of SAELens' first months",
        "get_pretrained_saes_directory()",
    ),
    "attention SAEs": (
        ("gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_v9.pt",
         "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_v9_cfg.json"),
        "attention SAEs of Kissane and others",
        "converter=connor_rob_hook_z_huggingface_loader",
    ),
    "a crosscoder": (
        ("blocks.14/cfg.json", "blocks.14/cc_weights.pt"), "a crosscoder", "Put the tensors"
    ),
    "a language model": (
        ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"),
        "a whole model's weights",
        "goes to --model",
    ),
    "OpenAI's names": (
        ("autoencoders/0.pt", "autoencoders/1.pt", "autoencoders/2.pt", "autoencoders/3.pt"),
        "an unknown layout: autoencoders/0.pt, autoencoders/1.pt, autoencoders/2.pt "
        "and 1 more",
        "Put the tensors",
    ),
    "sae.pt": (("layers.5/sae.pt",), "unknown layout: layers.5/sae.pt", "Put the tensors"),
    "other names": (("layer5/dict.safetensors",), "unknown layout", "Put the tensors"),
    "no weights": (("README.md", "cfg.json"), "no weights file, only README.md", ""),
}  # fmt: skip


def lay_out(root: Path, files: tuple[str, ...]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}")
    root.mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_another_layout_says_what_it_is_and_what_loads_it(name: str, tmp_path: Path):
    files, what, how = LAYOUTS[name]
    root = lay_out(tmp_path / "coders", files)
    calls: list[Callable[[], Any]] = [
        lambda: load_coder(root),
        lambda: load_coder(root, host="sparsify"),
        lambda: describe(root),
        lambda: convert(root, tmp_path / "out", "sparsify"),
    ]
    for call in calls:
        with pytest.raises(CheckpointError) as refusal:
            call()
        message = str(refusal.value)
        assert message.startswith(f"{root}: holds no coder; expected one of ['model.pt', ")
        assert what in message
        assert how in message
        assert "weights_only" not in message
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no coder.* It is empty"):
        load_coder(tmp_path)


def test_a_folder_of_the_hub_s_cache_is_its_repository_s(tmp_path: Path):
    files, _, _ = LAYOUTS["circuit-tracer"]
    cache = tmp_path / "models--mwhanna--qwen3-8b-transcoders" / "snapshots" / "0a1b"
    with pytest.raises(CheckpointError) as refusal:
        load_coder(lay_out(cache, files))
    assert "SAE.from_pretrained('mwhanna-qwen3-8b-transcoders', 'layer_0')." in str(refusal.value)


@pytest.mark.parametrize(
    ("repository", "name", "how"),
    [
        ("google/gemma-scope-9b-pt-res", "Gemma Scope", "'google/gemma-scope-9b-pt-res', 'layer_2"),
        ("Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", "Qwen Scope",
         "SAE.from_pretrained('qwen-scope-3-8b-base-w64k-l50', 'layer5')."),
        ("me/mine", "dictionary_learning",
         "SAE.from_pretrained('me/mine', 'resid_post_layer_12/trainer_1', converter="),
        ("me/mine", "sharded, of SAELens", "hf download me/mine --local-dir FOLDER"),
        ("me/mine", "OpenMOSS", "converter=llama_scope_r1_distill_sae_huggingface_loader"),
    ],
)  # fmt: skip
def test_a_repository_of_another_layout(
    repository: str, name: str, how: str, hub: Hub, capsys: pytest.CaptureFixture[str]
):
    files, what, _ = LAYOUTS[name]
    hub.add(repository, dict.fromkeys(files, b"{}"))
    for call in (load_coder, describe):
        with pytest.raises(CheckpointError) as refusal:
            call(repository)
        assert what in str(refusal.value)
        assert how in str(refusal.value)
    with pytest.raises(SystemExit):
        main(["inspect", repository])
    assert how in capsys.readouterr().err
    # The error comes without a download.
    assert hub.count("GET", "/resolve/") == 0


def test_coders_beside_other_files_are_still_found(tmp_path: Path):
    coder = SAE.from_dict(
        {"architecture": "topk", "d_in": D, "d_sae": LATENTS, "k": K, "dtype": "float32"}
    )
    coder.save_model(tmp_path / "ours")
    lay_out(tmp_path, LAYOUTS["dictionary_learning"][0])
    lay_out(tmp_path, LAYOUTS["OpenMOSS"][0])
    assert [one.name for one in describe(tmp_path)] == ["ours"]
    # SAELens' runners write no config.json, but other tools may write one beside cfg.json.
    (tmp_path / "ours" / "config.json").write_text("{}")
    assert torch.equal(load_coder(tmp_path / "ours").W_enc, coder.W_enc)


def test_the_lines_for_shards_make_them_load(tmp_path: Path):
    coder = SAE.from_dict(
        {"architecture": "topk", "d_in": D, "d_sae": LATENTS, "k": K, "dtype": "float32"}
    )
    coder.save_model(tmp_path / "s")
    (tmp_path / "s" / "sae_weights.safetensors").unlink()
    state = list(coder.state_dict().items())
    for number, part in enumerate((state[:1], state[1:]), 1):
        save_file(dict(part), tmp_path / "s" / f"sae_weights-0000{number}-of-00002.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        load_coder(tmp_path)
    lines = re.findall(r"^  (.*)$", str(refusal.value), re.MULTILINE)
    exec("\n".join(lines), {})
    assert torch.equal(load_coder(tmp_path).W_enc, coder.W_enc)


def dictionary_learning(root: Path) -> None:
    config = {
        "trainer": {
            "dict_class": "AutoEncoder", "activation_dim": D, "dict_size": LATENTS, "layer": 12,
            "lm_name": "google/gemma-2-2b",
        },
        "buffer": {"ctx_len": 1024},
    }  # fmt: skip
    folder = root / "resid_post_layer_12" / "trainer_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {
        "encoder.weight": torch.randn(LATENTS, D), "encoder.bias": torch.randn(LATENTS),
        "decoder.weight": torch.randn(D, LATENTS), "bias": torch.randn(D),
    }  # fmt: skip
    torch.save(state, folder / "ae.pt")


def circuit_tracer(root: Path) -> None:
    root.mkdir()
    (root / "config.yaml").write_text(
        "model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n"
        "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    (root / "wandb-config.yaml").write_text(
        f"d_model:\n  value: {D}\nd_feature:\n  value: {LATENTS}\nbatch_size:\n  value: 64\n"
    )
    state = {
        "W_enc": torch.randn(LATENTS, D), "b_enc": torch.randn(LATENTS),
        "W_dec": torch.randn(LATENTS, D), "b_dec": torch.randn(D),
    }  # fmt: skip
    save_file(state, root / "layer_0.safetensors")


@pytest.mark.parametrize(
    ("repository", "make"),
    [
        ("me/dictionaries", dictionary_learning),
        ("me/transcoders", circuit_tracer),
        ("mwhanna/qwen3-4b-transcoders", circuit_tracer),
    ],
)
def test_the_call_that_is_named_loads_them(
    repository: str, make: Callable[[Path], None], hub: Hub, tmp_path: Path
):
    make(tmp_path / "files")
    files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    hub.add(
        repository,
        {one.relative_to(tmp_path / "files").as_posix(): one.read_bytes() for one in files},
    )
    with pytest.raises(CheckpointError) as refusal:
        load_coder(repository)
    call = re.search(r"SAE\.from_pretrained\(.*?\)", str(refusal.value))
    assert call is not None
    # The call is run as a reader of the error would type it.
    coder: Any = eval(call[0], {"SAE": SAE, **vars(loaders)})
    assert (coder.cfg.d_in, coder.cfg.d_sae) == (D, LATENTS)
