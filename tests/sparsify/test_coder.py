import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from torch import Tensor

import sae_binary_ext  # noqa: F401  # registers
from sae_binary_ext.coding import (
    SELECTIONS,
    SURROGATES,
    covariance_penalty,
    minibatch_entropy,
    reference,
    sampled_covariance_penalty,
    scatter_codes,
    unpack,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

D_IN, LATENTS, K, TOKENS = 8, 128, 4, 50
ACTIVATIONS = tuple(kind.activation for kind in SELECTIONS.values())
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "b_dec learns through both": {"encoder_trains_b_dec": True},
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
    "uncentred": {"subtract_b_dec": False},
}
LEARNING = [
    (kind.activation, SURROGATES[surrogate].ste)
    for kind in SELECTIONS.values()
    for surrogate in kind.surrogates or SURROGATES
]
each_learning = pytest.mark.parametrize(("activation", "ste"), LEARNING)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def coder_of(
    activation: str = "topk_binary", dtype: torch.dtype = torch.float32, **fields: Any
) -> BinarySparseCoder:
    """A coder as sparsify builds it, with noise added to each parameter."""
    config = BinarySparseCoderConfig(activation=activation, num_latents=LATENTS, k=K, **fields)
    torch.manual_seed(0)
    coder = SparseCoder(D_IN, config, dtype=dtype)
    assert type(coder) is BinarySparseCoder
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return coder


def batch(dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, tokens, D_IN, generator=torch.Generator().manual_seed(3))
    return x.to(dtype), y.to(dtype)


def dense_codes(coder: SparseCoder, x: Tensor) -> Tensor:
    acts, index, pre = coder.encode(x)
    return torch.zeros_like(pre).scatter_(-1, index, acts)


def reference_output(coder: BinarySparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction, computed with plain dense matrices."""
    pre = (x - reference_origin(coder)) @ coder.encoder.weight.T + coder.encoder.bias
    codes = reference.codes(pre, coder.log_threshold, coder.rule)
    assert coder.W_dec is not None
    out = codes @ coder.W_dec + coder.b_dec
    return codes, out if coder.W_skip is None else out + x @ coder.W_skip.T


def reference_origin(coder: BinarySparseCoder) -> Tensor | float:
    """The vector that a coder subtracts from its input, or 0."""
    if coder.cfg.transcode or not coder.cfg.subtract_b_dec:
        return 0.0
    return coder.b_dec if coder.cfg.encoder_trains_b_dec else coder.b_dec.detach()


def gradients(coder: BinarySparseCoder, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*coder.named_parameters(), strict=True)
    return dict(
        zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True)
    )


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name],
            gradient,
            rtol=1e-8,
            atol=1e-10,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@each_kind
@each_learning
def test_value_and_every_gradient_equal_the_reference(activation: str, kind: str, ste: str):
    assert_equals_reference(coder_of(activation, torch.float64, ste=ste, **KINDS[kind]))


@each_kind
@pytest.mark.parametrize("ste", ["sigmoid", "rectangle", "re", "identity"])
@pytest.mark.parametrize("learn", ["near", "all"])
def test_latents_that_compete_equal_the_reference(kind: str, ste: str, learn: str):
    coder = coder_of(dtype=torch.float64, ste=ste, ste_latents=learn, **KINDS[kind])
    assert_equals_reference(coder)


def assert_equals_reference(coder: BinarySparseCoder) -> None:
    coder.eval()  # so that gumbel adds no noise
    x, y = batch(torch.float64)

    out = coder(x, y)
    codes, expected = reference_output(coder, x)
    fvu = (y - expected).square().sum() / (y - y.mean(0)).square().sum()

    torch.testing.assert_close(out.sae_out, expected)
    torch.testing.assert_close(out.fvu, fvu)
    assert torch.equal(dense_codes(coder, x), codes.round())
    assert_same(gradients(coder, out.fvu), gradients(coder, fvu))


@each_activation
def test_the_regularisers_enter_the_gradient_and_not_the_logged_fvu(activation: str):
    plain = coder_of(activation, torch.float64)
    coder = coder_of(
        activation,
        torch.float64,
        entropy_alpha=2e-3,
        covariance_alpha=3e-3,
        entropy_start_step=4,
        entropy_warm_up_steps=2,
        dense_alpha=5e-2,
        dense_rate=0.25,
    )
    x, y = (part.double() for part in batch())
    for share, step in ((0.0, 3), (0.5, 4), (1.0, 5)):
        coder.progress.step = step
        coder.eval()
        plain.eval()
        out = coder(x, y)
        assert out.fvu.item() == plain(x, y).fvu.item()

        codes, expected = reference_output(coder, x)
        loss = (y - expected).square().sum() / (y - y.mean(0)).square().sum()
        loss = loss + share * 2e-3 * minibatch_entropy(codes)
        loss = loss + share * 3e-3 * covariance_penalty(codes)
        loss = loss + 5e-2 * reference.excess_rate(codes, 0.25)
        assert_same(gradients(coder, out.fvu), gradients(coder, loss))


def test_a_sample_of_latents_estimates_the_covariance_loss():
    fields = {"covariance_alpha": 3e-3, "covariance_sample": 9}
    coder = coder_of(dtype=torch.float64, **fields).eval()
    x, y = batch(torch.float64)
    for step in (0, 1):
        coder.progress.step = step
        codes, expected = reference_output(coder, x)
        loss = (y - expected).square().sum() / (y - y.mean(0)).square().sum()
        loss = loss + 3e-3 * sampled_covariance_penalty(codes, 9, seed=step)
        assert_same(gradients(coder, coder(x, y).fvu), gradients(coder, loss))


def test_the_regularisers_ride_on_the_reconstruction_where_the_model_gives_the_loss():
    coder = coder_of(dtype=torch.float64, entropy_alpha=2e-3)
    coder.progress.regulariser_share = 0.5
    x, _ = batch(torch.float64)
    incoming = torch.randn(TOKENS, D_IN, dtype=torch.float64)
    codes, expected = reference_output(coder, x)
    loss = (expected * incoming).sum() + 0.5 * 2e-3 * minibatch_entropy(codes)
    assert_same(gradients(coder, (coder(x).sae_out * incoming).sum()), gradients(coder, loss))


@each_learning
def test_auxk_reaches_the_encoder(activation: str, ste: str):
    coder = coder_of(activation, torch.float64, ste=ste)
    coder.eval()
    x, y = batch(torch.float64)
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[[3, 17, 40]] = True  # fewer dead latents than d_in / 2 = 4

    loss = coder(x, y, dead_mask=dead).auxk_loss
    _, sae_out = reference_output(coder, x)
    margin = (x - reference_origin(coder)) @ coder.encoder.weight.T + coder.encoder.bias
    margin = (margin - coder.log_threshold.exp())[:, dead]
    linear = reference.slope(margin.detach(), coder.rule) * margin
    fired = 1 + linear - linear.detach()
    error = fired @ coder.W_dec[dead] - (y - sae_out).detach()
    expected = 3 / 4 * error.square().sum() / (y - y.mean(0)).square().sum()

    torch.testing.assert_close(loss, expected)
    ours = gradients(coder, loss)
    assert_same(ours, gradients(coder, expected))
    assert ours["encoder.weight"][dead].abs().sum() > 0
    assert ours["encoder.weight"][~dead].abs().sum() == 0


def test_auxk_without_dead_latents_is_zero():
    coder = coder_of()
    alive = torch.zeros(LATENTS, dtype=torch.bool)
    assert coder(*batch(), dead_mask=alive).auxk_loss == coder(*batch()).auxk_loss == 0


@each_kind
def test_multi_topk_is_the_fvu_of_four_times_as_many_latents(kind: str):
    coder = coder_of(multi_topk=True, **KINDS[kind])
    wider = coder_of(multi_topk=False, **KINDS[kind])
    wider.cfg.k = 4 * K
    x, y = batch()
    torch.testing.assert_close(coder(x, y).multi_topk_fvu, wider(x, y).fvu)
    assert wider(x, y).multi_topk_fvu == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("lead", [(TOKENS,), (5, 10)], ids=str)
@each_activation
def test_scattering_what_encode_returns_loses_no_one(
    activation: str, lead: tuple[int, ...], dtype: torch.dtype
):
    coder = coder_of(activation, dtype)
    x, _ = batch(dtype)
    acts, index, pre = coder.encode(x.unflatten(0, lead))
    assert acts.dtype == dtype
    assert acts.unique().tolist() in ([0.0, 1.0], [1.0])
    assert all(len(set(row)) == len(row) for row in index.flatten(0, -2).tolist())

    codes = torch.zeros_like(pre).scatter_(-1, index, acts).flatten(0, -2)
    expected = reference.codes(
        pre.flatten(0, -2).double(), coder.log_threshold.double(), coder.rule
    )
    assert torch.equal(codes.double(), expected)
    assert acts.double().sum() == codes.double().sum()
    if coder.rule.kind.uses_k:
        assert codes.sum(-1).max() <= K
    fewer_outputs = coder.encode_indices(x.unflatten(0, lead))
    assert torch.equal(scatter_codes(*fewer_outputs, LATENTS).flatten(0, -2), codes)
    packed = coder.encode_packed(x.unflatten(0, lead))
    assert torch.equal(unpack(packed, LATENTS, dtype).flatten(0, -2), codes)
    reconstruction = coder.decode(acts, index)
    assert reconstruction.shape == (*lead, D_IN)
    if dtype != torch.bfloat16:
        torch.testing.assert_close(reconstruction.flatten(0, -2), codes @ coder.W_dec + coder.b_dec)


def test_a_threshold_coder_that_never_fires_encodes_nothing():
    coder = coder_of("binary")
    coder.log_threshold.data.fill_(20.0)
    acts, _, _ = coder.encode(batch()[0])
    assert acts.shape == (TOKENS, 1)
    assert acts.sum() == 0


@each_activation
def test_latent_indices_name_the_latents_that_fired_and_no_others(activation: str):
    coder = coder_of(activation).eval()
    coder.log_threshold.data[: LATENTS // 2] = 20.0  # never fire, but fill a row up to k
    x, y = batch()
    out = coder(x, y)
    fired = dense_codes(coder, x).any(0).nonzero().flatten()
    assert 0 < len(fired) < LATENTS
    assert torch.equal(out.latent_indices.unique(), fired)
    assert out.latent_acts.shape == out.latent_indices.shape
    assert (out.latent_acts == 1).all()


def test_gumbel_samples_in_training_steps_alone():
    coder = coder_of("gumbel_binary")
    x, _ = batch()
    assert not torch.equal(coder(x).sae_out, coder(x).sae_out)
    assert torch.equal(dense_codes(coder, x), dense_codes(coder, x))
    with torch.no_grad():
        assert torch.equal(coder(x).sae_out, coder(x).sae_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_kind
@each_activation
def test_a_saved_coder_loads_bit_for_bit(
    activation: str, kind: str, dtype: torch.dtype, tmp_path: Path
):
    coder = coder_of(activation, dtype, **KINDS[kind]).eval()
    coder.save_to_disk(tmp_path / "layers.3.mlp")
    x, y = batch()
    for loaded in (
        SparseCoder.load_from_disk(tmp_path / "layers.3.mlp"),
        SparseCoder.load_many(str(tmp_path), local=True)["layers.3.mlp"],
        BinarySparseCoder.load_from_disk(tmp_path / "layers.3.mlp"),
    ):
        loaded.eval()
        assert type(loaded) is BinarySparseCoder
        assert loaded.cfg == coder.cfg
        assert loaded.dtype == dtype
        assert torch.equal(dense_codes(loaded, x), dense_codes(coder, x))
        assert torch.equal(loaded(x, y).sae_out, coder(x, y).sae_out)


def test_load_from_hub_returns_a_binary_coder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    coder_of("binary").save_to_disk(tmp_path / "layers.3.mlp")
    # Only the download needs the Hub, so it is replaced. The rest of load_from_hub is sparsify's.
    monkeypatch.setattr("sparsify.sparse_coder.snapshot_download", lambda *_, **__: str(tmp_path))
    assert type(SparseCoder.load_from_hub("user/repo", "layers.3.mlp")) is BinarySparseCoder
    assert type(SparseCoder.load_many("user/repo")["layers.3.mlp"]) is BinarySparseCoder


def test_a_file_of_the_first_paper_loads(tmp_path: Path):
    """In the first paper's files `binary` does not subtract b_dec, and firing rates are missing."""
    coder = coder_of("binary", subtract_b_dec=False)
    coder.save_to_disk(tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    del tensors["firing_rates"]
    save_file(tensors, tmp_path / "sae.safetensors")
    fields = json.loads((tmp_path / "cfg.json").read_text())
    kept = ("activation", "num_latents", "k", "ste", "ste_temperature", "d_in", "transcode")
    paper = {name: fields[name] for name in kept}
    paper |= {"normalize_decoder": False, "tied_decoder": False, "matryoshka": False}
    paper |= {"matryoshka_groups": 5}
    (tmp_path / "cfg.json").write_text(json.dumps(paper))

    loaded = SparseCoder.load_from_disk(tmp_path)
    x, y = batch()
    assert torch.equal(loaded(x, y).sae_out, coder(x, y).sae_out)
    assert torch.equal(dense_codes(loaded, x), dense_codes(coder, x))


def test_a_coder_without_decoder_encodes(tmp_path: Path):
    coder = coder_of()
    coder.save_to_disk(tmp_path)
    loaded = SparseCoder.load_from_disk(tmp_path, decoder=False)
    x, _ = batch()
    assert torch.equal(dense_codes(loaded, x), dense_codes(coder, x))
    with pytest.raises(ValueError, match="decoder=False"):
        loaded(x)


def test_running_firing_rates_follow_training_alone():
    coder = coder_of("binary")
    x, y = batch()
    rates = dense_codes(coder, x).mean(0)
    with torch.no_grad():
        coder(x, y)
    assert coder.firing_rates.sum() == 0
    coder(x, y)
    torch.testing.assert_close(coder.firing_rates, rates)
    coder(y, x)
    torch.testing.assert_close(
        coder.firing_rates, 0.99 * rates + 0.01 * dense_codes(coder, y).mean(0)
    )
    assert coder.entropy_bits() == pytest.approx(
        sum(reference.bernoulli_bits(rate) for rate in coder.firing_rates.tolist()), rel=1e-5
    )


@each_activation
def test_wrong_inputs_are_named(activation: str):
    coder = coder_of(activation)
    for act in (coder.encode, coder):
        with pytest.raises(ValueError, match=f"d_in={D_IN}"):
            act(torch.zeros(3, D_IN + 1))
        with pytest.raises(ValueError, match="NaN or infinite"):
            act(torch.full((3, D_IN), float("nan")))
    with pytest.raises(ValueError, match="NaN or infinite"):
        coder(torch.zeros(3, D_IN), torch.full((3, D_IN), float("inf")))


def test_encode_passes_gradients_to_every_parameter_before_it():
    coder = coder_of("binary", torch.float64, encoder_trains_b_dec=True)
    x, _ = batch(torch.float64)
    acts, index, pre = coder.encode(x)
    codes = torch.zeros_like(pre).scatter(-1, index, acts)
    expected, _ = reference_output(coder, x)
    parameters = (coder.encoder.weight, coder.encoder.bias, coder.log_threshold, coder.b_dec)
    incoming = torch.randn(TOKENS, LATENTS, dtype=torch.float64)
    # encode() does not return codes of 0, so they get no gradient here.
    incoming = incoming * codes.detach()
    ours = torch.autograd.grad((codes * incoming).sum(), parameters)
    theirs = torch.autograd.grad((expected * incoming).sum(), parameters)
    torch.testing.assert_close(ours, theirs)
