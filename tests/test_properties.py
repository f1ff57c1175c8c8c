"""Any config is refused with an error that names a field, or trains, saves, loads and agrees."""

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext.coding import SELECTIONS, SURROGATES
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION, SURROGATE_OF_STE
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.saelens.helpers import trainer_for

BATCH = 200
STEPS = 3
# The devices that this machine has.
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
# Each run draws the same examples. 100 of them fit in the time of the fast tests.
examples = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

sizes = st.integers(1, 8)
latents = st.integers(1, 70)
# Values inside and outside the ranges that configs allow.
counts = st.integers(-1, 50)
weights = st.sampled_from([-1.0, 0.0, 1e-4, 1.0, float("nan"), float("inf")])
rates = st.sampled_from([-0.1, 0.0, 0.02, 0.5, 1.0, float("nan")])
temperatures = st.sampled_from([-1.0, 0.0, 0.1, 1.0, 3.0, float("nan"), float("inf")])
dtypes = st.sampled_from(["float32", "float64", "bfloat16"])
SHARED = {
    "d_in": sizes,
    "d_sae": latents,
    "k": counts,
    "selection": st.sampled_from([*SELECTIONS, "best"]),
    "surrogate": st.sampled_from([*SURROGATES, "tanh"]),
    "surrogate_temperature": temperatures,
    "surrogate_latents": st.sampled_from([None, "selected", "near", "all", "some"]),
    "initial_firing_rate": st.none() | rates,
    "decoder_init_norm": st.sampled_from([None, 0.1, 1.0]),
    "encoder_trains_b_dec": st.booleans(),
    "apply_b_dec_to_input": st.booleans(),
    "pre_act_loss_coefficient": weights,
    "dense_coefficient": weights,
    "dense_rate": rates,
    "skip_non_finite": st.booleans(),
    "refit_tokens": st.none() | counts,
    "dead_window_tokens": st.none() | counts,
    "lr_decay_share": st.none() | weights,
    "dtype": dtypes,
    "device": st.sampled_from(DEVICES),
}
SPARSIFY = {
    "num_latents": latents,
    "k": counts,
    "activation": st.sampled_from([*SELECTION_OF_ACTIVATION, "relu"]),
    "ste": st.sampled_from([*SURROGATE_OF_STE, "tanh"]),
    "ste_temperature": temperatures,
    "ste_latents": st.sampled_from([None, "selected", "near", "all", "some"]),
    "initial_firing_rate": st.none() | rates,
    "entropy_alpha": weights,
    "covariance_alpha": weights,
    "covariance_sample": counts,
    "entropy_start_step": st.none() | counts,
    "entropy_warm_up_steps": st.none() | counts,
    "dense_alpha": weights,
    "dense_rate": rates,
    "subtract_b_dec": st.booleans(),
    "encoder_trains_b_dec": st.booleans(),
    "refit_tokens": st.none() | counts,
    "dead_window_tokens": st.none() | counts,
    "skip_non_finite": st.booleans(),
    "normalize_decoder": st.sampled_from([None, False, True]),
    "multi_topk": st.booleans(),
    "tied_decoder": st.booleans(),
    "refine_passes": st.sampled_from([0, 1, 3]),
    "cost_of_bit": weights,
    "matryoshka": st.booleans(),
    "matryoshka_groups": counts,
    "transcode": st.booleans(),
    "skip_connection": st.booleans(),
}
NORMALIZED = st.sampled_from(
    ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
)
ENTROPY = {
    "entropy_coefficient": weights,
    "covariance_coefficient": weights,
    "covariance_sample": counts,
    "entropy_start_step": st.none() | counts,
    "entropy_warm_up_steps": st.none() | counts,
}
SAELENS = {
    "binary": (BinaryTrainingSAEConfig, SHARED | {"normalize_activations": NORMALIZED}),
    "binary_entropy": (
        BinaryEntropyTrainingSAEConfig,
        SHARED | ENTROPY | {"normalize_activations": NORMALIZED},
    ),
    "binary_transcoder": (
        BinaryTranscoderTrainingSAEConfig,
        SHARED | ENTROPY | {"d_out": st.none() | sizes, "skip_connection": st.booleans()},
    ),
}


def few(
    fields: dict[str, st.SearchStrategy[Any]], *needed: str
) -> st.SearchStrategy[dict[str, Any]]:
    """Draw the needed fields and a few others. With all fields, few configs would be valid."""
    always = {name: fields[name] for name in needed}
    others = sorted(fields.keys() - always.keys())
    return st.sets(st.sampled_from(others), max_size=5).flatmap(
        lambda names: st.fixed_dictionaries(always | {name: fields[name] for name in sorted(names)})
    )


def made_or_refused(config_class: type, chosen: dict[str, Any]) -> Any:
    """The config, or None if it is refused. The error must name a field and its value."""
    values = {name: field.default for name, field in config_class.__dataclass_fields__.items()}
    values |= chosen
    try:
        config = config_class(**chosen)
    except ValueError as error:
        said = str(error)
    else:
        event("trained")
        return config
    event("refused")
    assert any(f"{name}={value!r}" in said for name, value in values.items()), said
    return None


def activations(width: int) -> Tensor:
    return torch.randn(STEPS * BATCH, width, generator=torch.Generator().manual_seed(0)) + 0.5


def assert_codes(codes: Tensor) -> None:
    assert set(codes.flatten().tolist()) <= {0.0, 1.0}


def test_a_deviation_of_one_number_is_refused():
    """layer_norm with d_in=1 made each weight NaN, as a longer run of these tests had found."""
    with pytest.raises(ValueError, match="normalize_activations='layer_norm' with d_in=1"):
        BinaryTrainingSAEConfig(d_in=1, d_sae=1, k=1, normalize_activations="layer_norm")


@pytest.mark.parametrize("architecture", SAELENS)
@examples
@given(data=st.data())
def test_any_config_of_saelens(architecture: str, data: st.DataObject):
    config_class, fields = SAELENS[architecture]
    config = made_or_refused(config_class, data.draw(few(fields, "d_in", "d_sae", "k")))
    if config is None:
        return
    width = config.d_in
    if architecture == "binary_transcoder":  # each row holds an input and its target
        width += config.d_out or config.d_in
    batches = activations(width).to(config.device)
    trainer = trainer_for(
        config, batches, STEPS, n_batches_for_norm_estimate=2, device=config.device
    )
    trained = trainer.fit()
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    x = activations(config.d_in)[:20].to(trained.device, trained.dtype)
    codes, output = trained.encode(x), trained(x)
    assert_codes(codes)
    with tempfile.TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder, device=config.device)
    assert torch.equal(loaded.encode(x), codes)
    assert torch.equal(loaded(x), output)


@examples
@given(
    chosen=few(SPARSIFY, "num_latents", "k"),
    d_in=sizes,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    device=st.sampled_from(DEVICES),
)
def test_any_config_of_sparsify(chosen: dict[str, Any], d_in: int, dtype: torch.dtype, device: str):
    config = made_or_refused(BinarySparseCoderConfig, chosen)
    if config is None:
        return
    try:
        coder = SparseCoder(d_in, config, device, dtype)
    except ValueError as error:  # only here the number of latents is known
        assert "latents" in str(error)  # noqa: PT017
        return
    assert isinstance(coder, BinarySparseCoder)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
    coder.progress.fit_start = config.initial_firing_rate != 0
    for step, x in enumerate(activations(d_in).to(device, dtype).split(BATCH)):
        coder.progress.step = step
        output = coder(x, x.flip(-1) if config.transcode else x)
        (output.fvu + output.multi_topk_fvu / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(parameter.isfinite().all() for parameter in coder.parameters())
    codes = coder.encode(x)
    assert_codes(codes.top_acts)
    with tempfile.TemporaryDirectory() as folder:
        coder.save_to_disk(folder)
        loaded = SparseCoder.load_from_disk(folder, device=device)
    assert torch.equal(loaded.encode(x).top_indices, codes.top_indices)
    assert torch.equal(loaded.encode(x).top_acts, codes.top_acts)
