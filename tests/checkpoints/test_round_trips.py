"""A converted coder has the same tensors, and the same forward pass in each host."""

import json
import pickle
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext.checkpoints import CheckpointError, convert
from sae_binary_ext.sparsify import BinarySparseCoder
from tests.checkpoints.coders import (
    CASES,
    CHO,
    HOOKPOINT,
    INPUT_HOOK,
    MODEL,
    OUTPUT_HOOK,
    QUIRKE,
    SAELENS,
    SPARSIFY,
    K,
)

EDGE = 1e-5  # below this margin, rounding may decide whether a latent fires
FORMATS = (SAELENS, SPARSIFY, QUIRKE, CHO)
each_case = pytest.mark.parametrize("name", CASES)


def files_of(folder: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the config that a folder's files hold."""
    if form == CHO:
        config = pickle.loads((folder / "config.pkl").read_bytes())
        return torch.load(folder / "model.pt", weights_only=True), config["params"]
    weights = "sae_weights.safetensors" if form == SAELENS else "sae.safetensors"
    config = json.loads((folder / "cfg.json").read_text())
    config.pop("sae_binary_ext", None)
    config.get("metadata", {}).pop("sae_binary_ext", None)
    return load_file(folder / weights), config


@each_case
def test_every_pair_of_formats_restores_every_tensor(name: str, tmp_path: Path):
    case = CASES[name]
    source = case.save(tmp_path)
    tensors, config = files_of(source, case.formats[0])
    for form in case.formats:
        convert(source, tmp_path / "first" / form, form)
    for one, other in permutations(case.formats, 2):
        first = tmp_path / "first" / one
        convert(first, tmp_path / f"{one}-{other}", other)
        convert(tmp_path / f"{one}-{other}", tmp_path / f"{one}-{other}-{one}", one)
        before, after = files_of(first, one), files_of(tmp_path / f"{one}-{other}-{one}", one)
        torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
        assert after[1] == before[1]
        if one == case.formats[0]:
            torch.testing.assert_close(after[0], tensors, atol=0, rtol=0)
            for key, value in config.items():
                assert key == "metadata" or after[1][key] == value


@each_case
def test_what_a_format_cannot_tell_is_refused_and_named(name: str, tmp_path: Path):
    case = CASES[name]
    source = case.save(tmp_path)
    for form in set(FORMATS).difference(case.formats):
        with pytest.raises(CheckpointError, match=r"\w+='?\w+|step at zero|skip connection"):
            convert(source, tmp_path / form, form)
        assert not (tmp_path / form).exists()


def codes_and_output(coder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and output of the host's own encode and forward."""
    if isinstance(coder, SAE):
        return coder.encode(x), coder(x)
    encoded = coder.encode(x)
    dense = torch.zeros_like(encoded.pre_acts).scatter(
        1, encoded.top_indices, encoded.top_acts.to(encoded.pre_acts.dtype)
    )
    return dense, coder(x).sae_out


def clear_of_edges(coder: SparseCoder, x: Tensor) -> Tensor:
    """Rows where no latent is within EDGE of its threshold, its group's rival or the k-th place."""
    subtracts = not coder.cfg.transcode and getattr(coder.cfg, "subtract_b_dec", True)
    margin = coder.encoder(x - coder.b_dec if subtracts else x)
    if isinstance(coder, BinarySparseCoder):
        margin = margin - coder.log_threshold.exp()
    ranked = margin.sort(descending=True).values
    groups = margin.unflatten(-1, (K, -1)).sort(descending=True).values
    rivals = (groups[..., 0] - groups[..., 1]).min(-1).values
    gaps = [margin.abs().min(-1).values, ranked[:, K - 1] - ranked[:, K], rivals]
    return torch.stack(gaps).min(0).values > EDGE


ACROSS_HOSTS = [
    name
    for name, case in CASES.items()
    if {SAELENS, SPARSIFY} <= set(case.formats) and "bfloat16" not in name
]


@torch.no_grad()
@pytest.mark.parametrize("name", ACROSS_HOSTS)
def test_both_hosts_compute_the_same(name: str, tmp_path: Path):
    source = CASES[name].save(tmp_path)
    convert(source, tmp_path / "a", SAELENS)
    convert(source, tmp_path / HOOKPOINT, SPARSIFY)
    sae: Any = SAE.load_from_disk(tmp_path / "a")
    coder = SparseCoder.load_from_disk(tmp_path / HOOKPOINT)
    x = torch.randn(500, coder.d_in, dtype=coder.dtype)
    clear = clear_of_edges(coder, x)
    assert clear.float().mean() > 0.95
    (codes, output), (other_codes, other_output) = (
        codes_and_output(one, x[clear]) for one in (sae, coder)
    )
    assert codes.any()
    if isinstance(coder, BinarySparseCoder):
        assert torch.equal(codes, other_codes)
    torch.testing.assert_close(codes, other_codes, atol=EDGE, rtol=0)
    torch.testing.assert_close(output, other_output, atol=EDGE, rtol=0)


@pytest.mark.parametrize("name", ACROSS_HOSTS)
def test_a_coder_keeps_its_place_in_both_hosts_words(name: str, tmp_path: Path):
    source = CASES[name].save(tmp_path)
    transcoder = "transcoder" in name
    convert(source, tmp_path / "a", SAELENS)
    metadata = SAE.load_from_disk(tmp_path / "a").cfg.metadata
    assert metadata.hook_name == (INPUT_HOOK if transcoder else OUTPUT_HOOK)
    assert metadata.hook_name_out == (OUTPUT_HOOK if transcoder else None)
    assert metadata.model_name == MODEL
    convert(tmp_path / "a", tmp_path / "b", SPARSIFY)
    notes = json.loads((tmp_path / "b" / "cfg.json").read_text())["sae_binary_ext"]
    assert notes["place"]["hookpoint"] == HOOKPOINT
