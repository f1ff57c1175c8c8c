"""The hosts' own forward passes decide whether a conversion keeps a transcoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from sae_binary_ext.checkpoints import transcoder_to_saelens, transcoder_to_sparsify
from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

D, LATENTS, K = 12, 48, 6
HOOKS = ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
EDGE = 1e-5  # nearer than this, the order of two hosts' sums may decide who fires

ACTIVATIONS = ("topk_binary", "groupmax_binary", "gumbel_binary", "binary", "topk")
SELECTIONS = ("topk", "groupmax", "gumbel", "threshold", "continuous")
each_skip = pytest.mark.parametrize("skip", [False, True])


def spread(coder: torch.nn.Module) -> None:
    """Parameters and buffers away from their start, thresholds and biases included."""
    for tensor in [*coder.parameters(), *coder.buffers()]:
        tensor.data.add_(0.3 * torch.rand_like(tensor))


def sparsify_coder(activation: str, skip: bool, dtype: torch.dtype) -> SparseCoder:
    shared: dict[str, Any] = {
        "activation": activation, "k": K, "transcode": True, "skip_connection": skip
    }  # fmt: skip
    config = (
        SparseCoderConfig(expansion_factor=LATENTS // D, **shared)
        if activation == "topk"
        else BinarySparseCoderConfig(
            num_latents=LATENTS, ste="sigmoid", ste_temperature=0.7, entropy_alpha=1e-3, **shared
        )
    )
    coder = SparseCoder(D, config, dtype=dtype)
    spread(coder)
    return coder


def saelens_coder(selection: str, skip: bool) -> Any:
    sizes: dict[str, Any] = {"d_in": D, "d_sae": LATENTS, "k": K, "skip_connection": skip}
    if selection == "continuous":
        coder: Any = TopKTranscoder(TopKTranscoderConfig(**sizes))
    else:
        coder = BinaryTranscoder(
            BinaryTranscoderConfig(**sizes, selection=selection, surrogate_temperature=0.7)
        )
    spread(coder)
    return coder


def dense_codes(coder: SparseCoder, x: Tensor) -> Tensor:
    encoded = coder.encode(x)
    return torch.zeros(len(x), LATENTS, dtype=x.dtype).scatter(
        1, encoded.top_indices, encoded.top_acts.to(x.dtype)
    )


def clear_of_edges(coder: SparseCoder, x: Tensor) -> Tensor:
    """Rows in which no latent is within EDGE of its threshold, its rival or the k-th place."""
    pre = coder.encoder(x)
    margin = pre - coder.log_threshold.exp() if isinstance(coder, BinarySparseCoder) else pre
    ranked = margin.sort(descending=True).values
    gaps = [margin.abs().min(-1).values, ranked[:, K - 1] - ranked[:, K]]
    groups = margin.unflatten(-1, (K, -1)).sort(descending=True).values
    gaps.append((groups[..., 0] - groups[..., 1]).min(-1).values)
    return torch.stack(gaps).min(0).values > EDGE


def assert_same_function(coder: SparseCoder, other: Any) -> None:
    x = torch.randn(500, D, dtype=coder.dtype)
    with torch.no_grad():
        clear = clear_of_edges(coder, x)
        assert clear.float().mean() > 0.95
        torch.testing.assert_close(
            other.encode(x)[clear], dense_codes(coder, x)[clear], atol=EDGE, rtol=0
        )
        if isinstance(coder, BinarySparseCoder):
            assert torch.equal(other.encode(x)[clear], dense_codes(coder, x)[clear])
        output = coder.eval()(x).sae_out
        torch.testing.assert_close(other(x)[clear], output[clear], atol=EDGE, rtol=0)


def assert_same_tensors(first: torch.nn.Module, second: torch.nn.Module) -> None:
    torch.testing.assert_close(second.state_dict(), first.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_skip
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_from_sparsify_and_back(activation: str, skip: bool, dtype: torch.dtype, tmp_path: Path):
    sparsify_coder(activation, skip, dtype).save_to_disk(tmp_path / "layers.3.mlp")
    coder = SparseCoder.load_from_disk(tmp_path / "layers.3.mlp")
    transcoder_to_saelens(coder, *HOOKS).save_model(tmp_path / "saelens")
    loaded: Any = SAE.load_from_disk(tmp_path / "saelens")
    assert type(loaded) is (TopKTranscoder if activation == "topk" else BinaryTranscoder)
    assert (loaded.cfg.metadata.hook_name, loaded.cfg.metadata.hook_name_out) == HOOKS
    assert_same_function(coder, loaded)

    transcoder_to_sparsify(loaded).save_to_disk(tmp_path / "back")
    back = SparseCoder.load_from_disk(tmp_path / "back")
    assert type(back) is type(coder)
    assert back.cfg == coder.cfg
    assert_same_tensors(coder, back)


@each_skip
@pytest.mark.parametrize("selection", SELECTIONS)
def test_from_saelens_and_back(selection: str, skip: bool, tmp_path: Path):
    saelens_coder(selection, skip).save_model(tmp_path / "saelens")
    coder: Any = SAE.load_from_disk(tmp_path / "saelens")
    transcoder_to_sparsify(coder).save_to_disk(tmp_path / "sparsify")
    loaded = SparseCoder.load_from_disk(tmp_path / "sparsify")
    assert type(loaded) is (SparseCoder if selection == "continuous" else BinarySparseCoder)
    assert_same_function(loaded, coder)

    back = transcoder_to_saelens(loaded, *HOOKS)
    assert type(back) is type(coder)
    for name, value in vars(coder.cfg).items():
        assert name == "metadata" or getattr(back.cfg, name) == value
    assert_same_tensors(coder, back)


def test_a_config_that_no_longer_fits_is_not_restored():
    coder: Any = transcoder_to_saelens(sparsify_coder("topk_binary", False, torch.float32), *HOOKS)
    coder.cfg.k = 3
    coder.rule = coder.cfg.code_rule()
    assert transcoder_to_sparsify(coder).cfg.k == 3


def test_what_the_other_host_cannot_express_is_refused():
    shared: dict[str, Any] = {"d_in": D, "d_sae": LATENTS, "k": K}
    with pytest.raises(ValueError, match=f"d_out=5 and d_in={D}"):
        transcoder_to_sparsify(BinaryTranscoder(BinaryTranscoderConfig(**shared, d_out=5)))
    normalised = BinaryTranscoderConfig(**shared, normalize_activations="layer_norm")
    with pytest.raises(ValueError, match="normalize_activations='layer_norm'"):
        transcoder_to_sparsify(BinaryTranscoder(normalised))
    rescaled = TopKTranscoderConfig(**shared, rescale_acts_by_decoder_norm=True)
    with pytest.raises(ValueError, match="rescale_acts_by_decoder_norm=True"):
        transcoder_to_sparsify(TopKTranscoder(rescaled))
    autoencoder = SparseCoder(D, BinarySparseCoderConfig(num_latents=LATENTS, k=K))
    with pytest.raises(ValueError, match="transcode=False"):
        transcoder_to_saelens(autoencoder, *HOOKS)
    groups = SparseCoderConfig(activation="groupmax", num_latents=LATENTS, k=K, transcode=True)
    with pytest.raises(ValueError, match="activation='groupmax'"):
        transcoder_to_saelens(SparseCoder(D, groups), *HOOKS)
    headless = BinarySparseCoderConfig(num_latents=LATENTS, k=K, transcode=True)
    with pytest.raises(ValueError, match="decoder=False"):
        transcoder_to_saelens(SparseCoder(D, headless, decoder=False), *HOOKS)
