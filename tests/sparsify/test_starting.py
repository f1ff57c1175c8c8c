"""In sparsify's Trainer a coder starts from data, the user's weights or a stock coder's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.sparsify.test_coder import dense_codes
from tests.sparsify.trainers import HOOKPOINT, coder_in, trainer_on

D_IN, LATENTS, K = 8, 64, 4
SIZES: dict[str, Any] = {"num_latents": LATENTS, "k": K}
STILL: dict[str, Any] = {"lr": 1e-9, "optimizer": "adam"}


@pytest.fixture
def activations() -> Tensor:
    return 3 * torch.randn(200, D_IN) + 0.5


@pytest.fixture
def rows() -> Tensor:
    return torch.arange(200).view(40, 5)


def other_state() -> dict[str, Tensor]:
    """State of another coder, in which each parameter differs."""
    torch.manual_seed(7)
    coder = BinarySparseCoder(D_IN, BinarySparseCoderConfig(**SIZES))
    return {name: values + 0.1 for name, values in coder.state_dict().items()}


def set_one(name: str) -> Callable[[BinarySparseCoder], object]:
    return lambda coder: coder.get_parameter(name).data.copy_(other_state()[name])


CHANGES: dict[str, Callable[[BinarySparseCoder], object]] = {
    "load_state_dict": lambda coder: coder.load_state_dict(other_state()),
    "the same loaded": lambda coder: coder.load_state_dict(coder.state_dict()),
    **{name: set_one(name) for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")},
    "another tensor": lambda coder: setattr(
        coder.encoder.weight, "data", other_state()["encoder.weight"]
    ),
}


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("start", [None, 0.0], ids=["our start", "the papers' start"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_set_before_training_is_kept(
    change: str,
    start: float | None,
    transcode: bool,
    activations: Tensor,
    rows: Tensor,
    tmp_path: Path,
):
    sae = BinarySparseCoderConfig(**SIZES, transcode=transcode, initial_firing_rate=start)
    trainer = trainer_on(activations, rows, sae, tmp_path, micro_acc_steps=2, **STILL)
    coder = coder_in(trainer)
    CHANGES[change](coder)
    before = {name: values.detach().clone() for name, values in coder.named_parameters()}
    trainer.fit()
    for name, values in coder.named_parameters():
        torch.testing.assert_close(values, before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", ["nothing", "log_threshold"])
def test_an_untouched_coder_is_started_from_data(
    change: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    trainer = trainer_on(activations, rows, BinarySparseCoderConfig(**SIZES), tmp_path, **STILL)
    coder = coder_in(trainer)
    if change == "log_threshold":
        coder.log_threshold.data.fill_(-1.0)
    trainer.fit()
    deviation = coder.encode(activations).pre_acts.std(0).square().mean().sqrt()
    assert deviation.item() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(coder.b_dec.detach(), activations.mean(0), atol=1e-5, rtol=0)


def save_stock(folder: Path, activations: Tensor, **fields: Any) -> SparseCoder:
    torch.manual_seed(3)
    coder = SparseCoder(D_IN, SparseCoderConfig(**SIZES, **fields))
    coder.b_dec.data.copy_(activations.mean(0))
    coder.encoder.bias.data.uniform_(-0.5, 0.5)
    coder.save_to_disk(folder / HOOKPOINT)
    return coder


@pytest.mark.parametrize(
    ("stock_fields", "fields"),
    [
        ({"activation": "topk"}, {"activation": "topk_binary"}),
        ({"activation": "topk"}, {"activation": "topk_binary", "subtract_b_dec": False}),
        ({"activation": "topk", "transcode": True}, {"transcode": True}),
        ({"activation": "groupmax"}, {"activation": "groupmax_binary"}),
        ({"activation": "groupmax"}, {"activation": "gumbel_binary"}),
    ],
)
def test_finetuning_a_stock_coder_keeps_which_latents_fire(
    stock_fields: dict[str, Any],
    fields: dict[str, Any],
    activations: Tensor,
    rows: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    stock = save_stock(tmp_path / "stock", activations, **stock_fields)
    stock.W_dec.data.copy_(stock.encoder.weight.data)
    stock.save_to_disk(tmp_path / "stock" / HOOKPOINT)
    sae = BinarySparseCoderConfig(**SIZES, **fields)
    trainer = trainer_on(
        activations, rows, sae, tmp_path, finetune=str(tmp_path / "stock"), **STILL
    )
    coder = coder_in(trainer)
    load_model(coder, str(tmp_path / "stock" / HOOKPOINT / "sae.safetensors"))
    trainer.fit()

    acts = dense_codes(stock, activations)
    codes = dense_codes(coder, activations)
    assert torch.equal(codes > 0, acts > 0)
    lengths = acts.sum(0) / codes.sum(0).clamp_min(1)
    expected = (lengths[:, None] * stock.W_dec)[codes.sum(0) > 0]
    torch.testing.assert_close(coder.W_dec[codes.sum(0) > 0], expected, atol=1e-4, rtol=1e-4)
    assert "one of sparsify's own coders" in caplog.text


def test_finetuning_to_thresholds_fires_k_latents_on_average(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    save_stock(tmp_path / "stock", activations)
    sae = BinarySparseCoderConfig(**SIZES, activation="binary")
    trainer = trainer_on(activations, rows, sae, tmp_path, finetune="stock", **STILL)
    coder = coder_in(trainer)
    load_model(coder, str(tmp_path / "stock" / HOOKPOINT / "sae.safetensors"))
    trainer.fit()
    active = dense_codes(coder, activations).sum(-1).mean()
    assert active.item() == pytest.approx(K, rel=0.25)


def save_gumbel_of_the_first_paper(folder: Path) -> BinarySparseCoder:
    """Save a gumbel coder in the first paper's format: no thresholds, no firing rates."""
    torch.manual_seed(3)
    cfg = BinarySparseCoderConfig(**SIZES, activation="gumbel_binary")
    coder = BinarySparseCoder(D_IN, cfg)
    coder.log_threshold.data.fill_(-torch.inf)
    coder.save_to_disk(folder)
    file = folder / "sae.safetensors"
    weights = load_file(file)
    del weights["log_threshold"], weights["firing_rates"]
    save_file(weights, file)
    return coder


def test_finetuning_a_gumbel_coder_without_thresholds_keeps_it(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    saved = save_gumbel_of_the_first_paper(tmp_path / "first" / HOOKPOINT)
    sae = BinarySparseCoderConfig(**SIZES, activation="gumbel_binary")
    finetune = str(tmp_path / "first")
    trainer = trainer_on(activations, rows, sae, tmp_path, finetune=finetune, **STILL)
    coder = coder_in(trainer)
    load_model(coder, str(tmp_path / "first" / HOOKPOINT / "sae.safetensors"))
    trainer.fit()
    torch.testing.assert_close(dense_codes(coder, activations), dense_codes(saved, activations))
    torch.testing.assert_close(coder.W_dec, saved.W_dec, atol=1e-6, rtol=0)
    read = SparseCoder.load_from_disk(tmp_path / "first" / HOOKPOINT)
    assert torch.equal(dense_codes(read, activations), dense_codes(saved, activations))


@pytest.mark.parametrize("activation", ["topk_binary", "gumbel_binary", "binary"])
def test_a_stock_coder_s_weights_are_named_where_none_was_asked_for(
    activation: Any, activations: Tensor, tmp_path: Path
):
    save_stock(tmp_path, activations)
    coder = BinarySparseCoder(D_IN, BinarySparseCoderConfig(**SIZES, activation=activation))
    with pytest.raises(ValueError, match=r"have no log_threshold.*finetune"):
        load_model(coder, str(tmp_path / HOOKPOINT / "sae.safetensors"))
