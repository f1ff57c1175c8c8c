import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.checkpoints import (
    CheckpointError,
    coder_to_saelens,
    coder_to_sparsify,
    convert,
    describe,
    disk_converter,
    load_coder,
)
from sae_binary_ext.checkpoints.saelens import TRAINING_FIELDS as SAELENS_TRAINING_FIELDS
from sae_binary_ext.checkpoints.sparsify import TRAINING_FIELDS as SPARSIFY_TRAINING_FIELDS
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    RefinedSAEConfig,
    RefinedTrainingSAEConfig,
    TopKTranscoderConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.checkpoints.coders import (
    CASES,
    HOOKPOINT,
    LATENTS,
    MODEL,
    OUTPUT_HOOK,
    QUIRKE,
    SAELENS,
    SPARSIFY,
    D,
    K,
)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("saelens")])
def test_saelens_own_loader_and_ours_agree(name: str, tmp_path: Path):
    folder = CASES[name].save(tmp_path)
    own, ours = SAE.load_from_disk(folder), load_coder(folder)
    assert type(ours) is type(own)
    assert ours.cfg.to_dict() == own.cfg.to_dict()
    for key, tensor in own.state_dict().items():
        # SAELens rounds the threshold of a bfloat16 coder, as the coder's forward pass does.
        torch.testing.assert_close(ours.state_dict()[key].to(tensor.dtype), tensor, atol=0, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sparsify")])
def test_sparsify_own_loader_and_ours_agree(name: str, tmp_path: Path):
    folder = CASES[name].save(tmp_path)
    own, ours = SparseCoder.load_from_disk(folder), load_coder(folder, host="sparsify")
    assert type(ours) is type(own)
    assert ours.cfg == own.cfg
    torch.testing.assert_close(ours.state_dict(), own.state_dict(), atol=0, rtol=0)


def test_saelens_loads_sparsify_s_format_from_disk_with_the_converter(tmp_path: Path):
    folder = CASES["sparsify topk_binary"].save(tmp_path)
    sae: Any = SAE.load_from_disk(folder, converter=disk_converter)
    assert type(sae) is BinarySAE
    assert sae.cfg.metadata.hook_name == OUTPUT_HOOK
    assert torch.equal(sae.W_enc, SparseCoder.load_from_disk(folder).encoder.weight.T)
    half: Any = SAE.load_from_disk(folder, converter=disk_converter, dtype="float16")
    assert half.W_enc.dtype == torch.float16


def test_training_checkpoints_load_for_inference(tmp_path: Path):
    config = BinaryTrainingSAEConfig(d_in=D, d_sae=LATENTS, k=K, dtype="bfloat16")
    BinaryTrainingSAE(config).save_model(tmp_path / "checkpoint")
    sae = load_coder(tmp_path / "checkpoint")
    assert type(sae) is BinarySAE
    assert sae.log_threshold.dtype == torch.float32


def test_the_fields_that_only_training_reads_are_those_of_the_configs():
    def fields(*configs: Any) -> set[str]:
        return {field.name for config in configs for field in dataclasses.fields(config)}

    training = fields(
        BinaryEntropyTrainingSAEConfig,
        BinaryTranscoderTrainingSAEConfig,
        RefinedTrainingSAEConfig,
        TopKTranscoderTrainingSAEConfig,
    )
    inference = fields(BinaryTranscoderConfig, RefinedSAEConfig, TopKTranscoderConfig)
    assert set(SAELENS_TRAINING_FIELDS) == training - inference
    said = {"activation", "expansion_factor", "num_latents", "k", "skip_connection", "transcode"}
    said |= {"refine_passes", "ste", "ste_temperature", "subtract_b_dec", "tied_decoder"}
    assert set(SPARSIFY_TRAINING_FIELDS) == fields(BinarySparseCoderConfig) - said


def test_coders_in_memory_change_hosts_too():
    coder = CASES["sparsify topk_binary"].make()
    sae = coder_to_saelens(coder, HOOKPOINT, MODEL)
    assert sae.cfg.metadata.hook_name == OUTPUT_HOOK
    back = coder_to_sparsify(sae)
    assert back.cfg == coder.cfg
    torch.testing.assert_close(back.state_dict(), coder.state_dict(), atol=0, rtol=0)
    # The coders are copies, so training one of them does not change the others.
    sae.b_dec.data.zero_()
    assert coder.b_dec.any()
    assert back.b_dec.any()


def test_what_coders_in_memory_cannot_be_is_refused():
    groups = SparseCoder(D, SparseCoderConfig(activation="groupmax", num_latents=LATENTS, k=K))
    with pytest.raises(CheckpointError, match="activation='groupmax'"):
        coder_to_saelens(groups)
    headless = BinarySparseCoderConfig(num_latents=LATENTS, k=K)
    with pytest.raises(CheckpointError, match="decoder=False"):
        coder_to_saelens(SparseCoder(D, headless, decoder=False))
    with pytest.raises(CheckpointError, match="architecture='jumprelu'"):
        coder_to_sparsify(JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=LATENTS)))


def test_stock_coders_that_only_their_host_has_load_there_alone(tmp_path: Path):
    jumprelu = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=LATENTS))
    jumprelu.save_model(tmp_path / "jumprelu")
    assert type(load_coder(tmp_path / "jumprelu")) is JumpReLUSAE
    with pytest.raises(CheckpointError, match="architecture='jumprelu'"):
        load_coder(tmp_path / "jumprelu", host="sparsify")
    assert describe(tmp_path / "jumprelu")[0].architecture == "jumprelu, of SAELens only"
    (tmp_path / "jumprelu" / "sae_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="its host refuses it"):
        load_coder(tmp_path / "jumprelu")


def run_of_two(root: Path) -> Path:
    for layer in (1, 2):
        CASES["sparsify topk_binary"].make().save_to_disk(root / "run" / f"layers.{layer}")
    (root / "run" / "config.json").write_text(json.dumps({"model": MODEL}))
    return root / "run"


def test_a_run_s_coders_are_converted_each_to_a_folder_of_its_own(tmp_path: Path):
    run = run_of_two(tmp_path)
    written = convert(run, tmp_path / "saelens")
    names = [f"blocks.{layer}.hook_resid_post" for layer in (1, 2)]
    assert written == [tmp_path / "saelens" / name for name in names]
    assert [SAE.load_from_disk(folder).cfg.metadata.hook_name for folder in written] == names
    convert(tmp_path / "saelens", tmp_path / "back", "sparsify")
    assert list(SparseCoder.load_many(str(tmp_path / "back"), local=True)) == [
        "layers.1",
        "layers.2",
    ]


def test_coders_of_the_same_hook_do_not_overwrite_each_other(tmp_path: Path):
    for name in ("a", "b"):
        CASES["saelens topk"].make().save_model(tmp_path / "coders" / name)
    with pytest.raises(CheckpointError, match=r"b and a both belong at layers.3.mlp"):
        convert(tmp_path / "coders", tmp_path / "out", SPARSIFY)
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "coders", tmp_path / "out", SPARSIFY, hookpoint="b")
    assert load_coder(tmp_path / "out", host="sparsify").cfg.k == K


def test_a_source_of_several_coders_is_asked_which(tmp_path: Path):
    run = run_of_two(tmp_path)
    with pytest.raises(CheckpointError, match=r"choose one of \['layers.1', 'layers.2'\]"):
        load_coder(run)
    chosen = load_coder(run, "layers.2")
    assert chosen.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    with pytest.raises(CheckpointError, match=r"no coder 'layers.3' but"):
        load_coder(run, "layers.3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no coder"):
        load_coder(tmp_path / "empty")


def test_converting_again_replaces_and_strangers_files_are_left_alone(tmp_path: Path):
    source = CASES["saelens topk"].save(tmp_path)
    convert(source, tmp_path / "out", SPARSIFY)
    CASES["saelens topk"].make()  # other random numbers
    source = CASES["saelens topk"].save(tmp_path)
    convert(source, tmp_path / "out", SPARSIFY)
    coder = SparseCoder.load_from_disk(tmp_path / "out")
    assert torch.equal(coder.b_dec, load_coder(source).b_dec)
    with pytest.raises(CheckpointError, match=r"holds \['sae.safetensors'\]"):
        convert(source, tmp_path / "out", SAELENS)
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds \['thesis.tex'\]. Choose a new folder"):
        convert(source, tmp_path / "out", SPARSIFY)


def test_records_of_a_coder_go_with_it(tmp_path: Path):
    source = CASES["saelens topk"].save(tmp_path)
    rates = torch.linspace(0, 0.3, LATENTS)
    save_file({"sparsity": (rates + 1e-10).log10()}, source / "sparsity.safetensors")
    (source / "metrics.json").write_text("{}")
    (source / "trainer_state.pt").write_bytes(b"")
    convert(source, tmp_path / "out", SPARSIFY)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cfg.json", "sae.safetensors", "sparsity.safetensors", "metrics.json"
    }  # fmt: skip
    firing = describe(tmp_path / "out")[0].firing
    assert firing is not None
    assert firing.l0 == pytest.approx(rates.sum().item(), rel=1e-4)
    assert (firing.dead, firing.dense) == (1, int((rates > 0.1).sum()))


def test_firing_rates_of_training_are_described(tmp_path: Path):
    coder = CASES["sparsify topk_binary"].make()
    coder.firing_rates.copy_(torch.tensor([0.0, 0.5] * (LATENTS // 2)))
    coder.save_to_disk(tmp_path / HOOKPOINT)
    (description,) = describe(tmp_path / HOOKPOINT)
    assert description.firing is not None
    assert description.firing.l0 == LATENTS / 4
    assert description.firing.entropy_bits == pytest.approx(LATENTS / 2)
    assert (description.firing.dead, description.firing.dense) == (LATENTS // 2, LATENTS // 2)
    coder.firing_rates.zero_()
    coder.save_to_disk(tmp_path / HOOKPOINT)
    assert describe(tmp_path / HOOKPOINT)[0].firing is None


def test_the_paper_s_threshold_coders_keep_their_uncentred_input(tmp_path: Path):
    """Threshold coders in the first paper's files subtract no b_dec, though no field says so."""
    source = CASES["sparsify binary uncentred"].save(tmp_path)
    convert(source, tmp_path / "papers", QUIRKE)
    config = json.loads((tmp_path / "papers" / "cfg.json").read_text())
    assert "subtract_b_dec" not in config
    assert config["matryoshka"] is config["tied_decoder"] is False
    assert load_coder(tmp_path / "papers").cfg.apply_b_dec_to_input is False
    own = SparseCoder.load_from_disk(tmp_path / "papers")
    assert isinstance(own, BinarySparseCoder)
    assert not own.cfg.subtract_b_dec


def test_a_tied_coder_stays_tied_in_sparsify_and_has_two_weights_elsewhere(tmp_path: Path):
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, tied_decoder=True)
    SparseCoder(D, config).save_to_disk(tmp_path / "layers.3")
    convert(tmp_path / "layers.3", tmp_path / "saelens", "saelens")
    convert(tmp_path / "saelens", tmp_path / "again" / "layers.3", "sparsify")
    coders = [SparseCoder.load_from_disk(tmp_path / name / "layers.3") for name in (".", "again")]
    for coder in coders:
        assert coder.W_dec is coder.encoder.weight
        assert torch.equal(coder.encoder.weight, coders[0].encoder.weight)
    convert(tmp_path / "layers.3", tmp_path / "papers", QUIRKE)
    assert json.loads((tmp_path / "papers" / "cfg.json").read_text())["tied_decoder"] is False
    assert torch.equal(load_coder(tmp_path / "papers").W_dec, coders[0].W_dec)


def test_unknown_hosts_are_refused(tmp_path: Path):
    folder = CASES["saelens topk"].save(tmp_path)
    host: Any = "dictionary_learning"
    with pytest.raises(CheckpointError, match=r"host='dictionary_learning': choose one of"):
        load_coder(folder, host=host)
    with pytest.raises(CheckpointError, match=r"host='dictionary_learning': choose one of"):
        convert(folder, tmp_path / "out", host)
    with pytest.raises(CheckpointError, match=r"host='circuit-tracer': .*ReLU and JumpReLU alone"):
        convert(folder, tmp_path / "out", "circuit-tracer")


def test_layer_norm_coders_stay_what_they_are_in_saelens(tmp_path: Path):
    config = BinarySAEConfig(d_in=D, d_sae=LATENTS, k=K, normalize_activations="layer_norm")
    BinarySAE(config).save_model(tmp_path / "a")
    assert load_coder(tmp_path / "a").cfg.normalize_activations == "layer_norm"
