"""Coders in the papers' own files compute what plain formulas give, or are refused."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext.checkpoints import CheckpointError, convert, describe, load_coder, push
from tests.checkpoints.published_papers import (
    AUTOENCODES,
    CHO,
    EARLY,
    LATENTS,
    MODEL,
    QUIRKE,
    REFUSED,
    SEVENTEEN,
    Cho,
    D,
    Quirke,
    as_script,
    cho_formula,
    four,
    grid,
    k_largest,
)
from tests.limits import little_memory

HOSTS = ("saelens", "sparsify")
each_host = pytest.mark.parametrize("host", HOSTS)


def codes_and_output(coder: Any, host: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and output of the host's own methods, in float32."""
    x = x.to(coder.dtype)
    if host == "saelens":
        return coder.encode(x).float(), coder(x).float()
    encoded = coder.encode(x)
    codes = torch.zeros(len(x), coder.num_latents, dtype=encoded.top_acts.dtype)
    codes.scatter_add_(1, encoded.top_indices, encoded.top_acts)
    target = {"y": x} if coder.cfg.transcode else {}
    return codes.float(), coder(x, **target).sae_out.float()


def assert_computes(coder: Any, host: str, x: Tensor, codes: Tensor, output: Tensor) -> None:
    got_codes, got_output = codes_and_output(coder, host, x)
    assert torch.equal(got_codes, codes)
    assert 0 < codes.mean() < 1
    torch.testing.assert_close(got_output, output, atol=1e-5, rtol=0)


@torch.no_grad()
@each_host
@pytest.mark.parametrize("name", QUIRKE)
def test_the_first_paper_s_files(name: str, host: Any, tmp_path: Path):
    case = QUIRKE[name]
    folder, tensors = case.save(tmp_path / "run")
    x = grid(100, D, step=1 / 8)
    coder = load_coder(tmp_path / "run", host=host)
    assert_computes(coder, host, x, *case.formula(tensors, x))
    if host == "saelens":
        transcodes = case.config["transcode"]
        place = coder.cfg.metadata
        hooks = ("blocks.9.mlp.hook_in", "blocks.9.hook_mlp_out")
        expected = hooks if transcodes else ("blocks.9.hook_resid_post", None)
        assert (place.hook_name, place.hook_name_out) == expected
        assert place.model_name == MODEL
    # The coder computes the same in each other format. Converting it back restores its files.
    for form in ("saelens", "sparsify"):
        there = convert(folder, tmp_path / form / folder.name, form)
        assert_computes(load_coder(there[0], host=host), host, x, *case.formula(tensors, x))
    if case.config["activation"] != "topk":
        for form in ("saelens", "sparsify"):
            back = tmp_path / f"back-{form}" / folder.name
            convert(tmp_path / form / folder.name, back, "quirke2025")
            torch.testing.assert_close(load_file(back / "sae.safetensors"), tensors, atol=0, rtol=0)
            assert case.config.items() <= json.loads((back / "cfg.json").read_text()).items()


@torch.no_grad()
@pytest.mark.parametrize("name", QUIRKE)
def test_the_first_paper_s_files_load_in_sparsify_itself(name: str, tmp_path: Path):
    case = QUIRKE[name]
    folder, tensors = case.save(tmp_path)
    x = grid(100, D, step=1 / 8)
    assert_computes(SparseCoder.load_from_disk(folder), "sparsify", x, *case.formula(tensors, x))


def test_a_coder_of_normalized_rows_says_that_nothing_normalizes_them(tmp_path: Path):
    folder, tensors = QUIRKE["normalize_decoder autoencoder"].save(tmp_path)
    coder = load_coder(folder, host="sparsify")
    assert coder.cfg.normalize_decoder is False
    assert torch.equal(coder.W_dec, tensors["W_dec"])
    with pytest.raises(ValueError, match="set_decoder_norm_to_unit_norm"):
        coder.set_decoder_norm_to_unit_norm()


@torch.no_grad()
@each_host
@pytest.mark.parametrize("activation", ["topk_binary", "binary", "topk"])
@pytest.mark.parametrize("missing", ["encoder.weight", "W_dec"])
def test_a_tied_decoder_has_one_weight_in_its_file(
    missing: str, activation: str, host: Any, tmp_path: Path
):
    case = Quirke({**AUTOENCODES, "tied_decoder": True, "activation": activation})
    folder, tensors = case.save(tmp_path)
    # If a tensor has two names, save_model of safetensors stores it under one of them.
    (kept,) = {"encoder.weight", "W_dec"} - {missing}
    tensors.pop(missing)
    save_file(tensors, folder / "sae.safetensors")
    tensors[missing] = tensors[kept]
    x = grid(100, D, step=1 / 8)
    assert_computes(load_coder(folder, host=host), host, x, *case.formula(tensors, x))
    if activation != "topk":
        coder = SparseCoder.load_from_disk(folder)
        assert coder.W_dec is coder.encoder.weight
        assert_computes(coder, "sparsify", x, *case.formula(tensors, x))
        without = SparseCoder.load_from_disk(folder, decoder=False)
        assert torch.equal(without.encoder.weight, tensors[kept])


@each_host
def test_a_tied_decoder_of_two_weights_or_none_is_refused(host: Any, tmp_path: Path):
    folder, tensors = Quirke({**AUTOENCODES, "tied_decoder": True}).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"tied_decoder=True.*they differ"):
        load_coder(folder, host=host)
    del tensors["W_dec"], tensors["encoder.weight"]
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(CheckpointError, match=r"tied_decoder=True.*holds neither"):
        load_coder(folder, host=host)


@torch.no_grad()
@each_host
@pytest.mark.parametrize("activation", ["topk_binary", "topk"])
def test_matryoshka_changed_the_training_loss_alone(activation: str, host: Any, tmp_path: Path):
    case = Quirke({**AUTOENCODES, "activation": activation, "matryoshka": True})
    folder, tensors = case.save(tmp_path)
    x = grid(100, D, step=1 / 8)
    assert_computes(load_coder(folder, host=host), host, x, *case.formula(tensors, x))
    coder = SparseCoder.load_from_disk(folder)
    assert_computes(coder, "sparsify", x, *case.formula(tensors, x))


@torch.no_grad()
@each_host
def test_coders_without_thresholds_are_refused_and_the_remedy_works(host: Any, tmp_path: Path):
    case = Quirke(absent=EARLY)
    folder, tensors = case.save(tmp_path)
    del tensors["log_threshold"]
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(CheckpointError, match=r"no log_threshold.*fires above 1.*32 zeros"):
        load_coder(folder, host=host)
    with pytest.raises(ValueError, match=r"no log_threshold.*earliest coders.*load_coder, which"):
        SparseCoder.load_from_disk(folder)
    save_file({**tensors, "log_threshold": torch.zeros(LATENTS)}, folder / "sae.safetensors")
    x = grid(100, D, step=1 / 8)
    pre = (x @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
    codes = k_largest(pre) * (pre > 1)
    output = codes @ tensors["W_dec"] + tensors["b_dec"]
    assert_computes(load_coder(folder, host=host), host, x, codes, output)


@each_host
@pytest.mark.parametrize("estimates", [True, False])
def test_codes_of_the_branch_without_a_step_are_refused(estimates: bool, host: Any, tmp_path: Path):
    folder, _ = Quirke({"ste_thresh_est": estimates}, absent=EARLY[2:]).save(tmp_path)
    reason = r"binary-threshold.*1 even below their thresholds.*Load it with that branch"
    with pytest.raises(CheckpointError, match=reason):
        load_coder(folder, host=host)


@torch.no_grad()
@each_host
@pytest.mark.parametrize("name", CHO)
def test_the_second_paper_s_files(name: str, host: Any, tmp_path: Path):
    state = CHO[name].write(tmp_path)
    x = torch.randint(-2, 3, (100, D)) / 2
    with little_memory():
        coder = load_coder(tmp_path, "layers.11", host=host)
    assert_computes(coder, host, x, *cho_formula(state, x))
    if host == "saelens":
        assert coder.cfg.metadata.hook_name == "blocks.11.hook_resid_post"


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["the script's own files, no decoder bias", "numpy._core numbers, protocol 4"]
)
def test_the_second_paper_s_coders_come_back_as_they_were(name: str, tmp_path: Path):
    state = CHO[name].write(tmp_path / "source")
    for form in ("saelens", "sparsify", "quirke2025"):
        convert(tmp_path / "source", tmp_path / form / "layers.11", form, hookpoint="layers.11")
        convert(tmp_path / form / "layers.11", tmp_path / f"back-{form}", "cho2025")
        back = torch.load(tmp_path / f"back-{form}" / "model.pt", weights_only=True)
        torch.testing.assert_close(back, state, atol=0, rtol=0)
        config = pickle.loads((tmp_path / f"back-{form}" / "config.pkl").read_bytes())
        assert SEVENTEEN.items() <= config["params"].items()


@each_host
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_step_is_refused_with_what_loads_it(name: str, host: Any, tmp_path: Path):
    case, words = REFUSED[name]
    case.write(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load_coder(tmp_path, "layers.11", host=host)


def test_a_coder_without_config_is_read_as_the_paper_s_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    CHO["no config"].write(tmp_path)
    with caplog.at_level(logging.WARNING):
        load_coder(tmp_path, "layers.11")
    assert "there is no config beside it" in caplog.text


@torch.no_grad()
def test_several_reports_in_one_folder(tmp_path: Path):
    times = ("20250930_101500_000001", "20250930_101500_000002")
    cases = [Cho(lambda root, time=time: as_script(root, time)) for time in times]
    states = {time: case.write(tmp_path) for time, case in zip(times, cases, strict=True)}
    x = torch.randint(-2, 3, (100, D)) / 2
    for time, state in states.items():
        name = f"report_{time}"
        for coder in (load_coder(tmp_path, name), load_coder(tmp_path / name, "layers.3")):
            assert_computes(coder, "saelens", x, *cho_formula(state, x))
        assert coder.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    names = [f"report_{time}" for time in times]
    assert [one.name for one in describe(tmp_path)] == names
    with pytest.raises(CheckpointError, match=r"no coder 'layers\.11'"):
        load_coder(tmp_path, "layers.11")
    # If one folder holds the files of two coders, nothing tells which coder is meant.
    (tmp_path / names[0] / f"model_{times[0]}.pt").rename(tmp_path / names[1] / "model_1.pt")
    with pytest.raises(CheckpointError, match=r"holds \['model_1.pt', 'model_2025.*of its own"):
        load_coder(tmp_path / names[1])


def test_a_report_is_published_under_the_names_that_load(tmp_path: Path):
    CHO["the script's own files"].write(tmp_path)
    upload = push(tmp_path, "me/coders", model="meta-llama/Llama-3.2-1B", dry_run=True)
    names = {Path(name).name for name in upload.files}
    assert {"model.pt", "config.pkl"} <= names
    assert not any(name.startswith("log_") for name in names)


def test_a_state_dict_of_something_else_names_both(tmp_path: Path):
    state: dict[str, Tensor] = {"weight": torch.zeros(2, 2)}
    torch.save(state, four(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"model.pt: .*\['weight'\], where .*'encoder.weight'"
    ):
        load_coder(tmp_path)
    torch.save([1], tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds list.*torch.save\(model.state_dict") as error:
        load_coder(tmp_path)
    assert "weights_only" not in str(error.value)
