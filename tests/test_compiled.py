"""torch.compile traces the steps of both hosts' coders without a break, on the path of a GPU.

Guards are left out: they read values, and SAELens' compiled step calls them uncompiled. Sampled
covariances are left out too: torch.compile does not trace a generator's seed.
"""

from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext import saelens
from sae_binary_ext.coding.kernels import largest, processor
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.training.finite import FiniteWatch

D_IN, LATENTS, K, TOKENS = 8, 128, 4, 40
SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": LATENTS, "k": K}
IN_SAELENS: dict[str, TrainingSAEConfig] = {
    "topk": saelens.BinaryTrainingSAEConfig(**SIZES),
    "topk, all": saelens.BinaryTrainingSAEConfig(**SIZES, surrogate_latents="all"),
    "groupmax": saelens.BinaryTrainingSAEConfig(**SIZES, selection="groupmax"),
    "gumbel": saelens.BinaryTrainingSAEConfig(**SIZES, selection="gumbel"),
    "covariance": saelens.BinaryEntropyTrainingSAEConfig(**SIZES, covariance_coefficient=1e-4),
    "refined": saelens.RefinedTrainingSAEConfig(**SIZES, training_passes=1),
    "transcoder, AuxK": saelens.BinaryTranscoderTrainingSAEConfig(
        **SIZES, d_out=D_IN, skip_connection=True, aux_loss_coefficient=1e-2
    ),
}
IN_SPARSIFY: dict[str, dict[str, Any]] = {
    "topk, AuxK": {},
    "threshold": {"activation": "binary", "entropy_alpha": 1e-3, "covariance_alpha": 1e-4},
    "matryoshka, 4k latents": {"matryoshka": True, "multi_topk": True},
    "refined": {"refine_passes": 1},
}


@pytest.fixture(autouse=True)
def path_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (processor, largest):
        monkeypatch.setattr(module, "on_cpu", lambda _: False)
    monkeypatch.setattr(FiniteWatch, "check", lambda *_: None)
    torch.compiler.reset()


def compiled(function: Any) -> Any:
    """The function in one graph; an error if torch.compile would break it."""
    return torch.compile(function, backend="eager", fullgraph=True)


def assert_equal_gradients(ours: torch.nn.Module, loss: Tensor, other: Tensor) -> None:
    parameters = [each for each in ours.parameters() if each.requires_grad]
    found = (
        torch.autograd.grad(each, parameters, allow_unused=True, retain_graph=True)
        for each in (loss, other)
    )
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", IN_SAELENS)
def test_a_step_in_saelens_is_one_graph(name: str):
    sae = TrainingSAE.from_dict(IN_SAELENS[name].to_dict())
    x = torch.randn(TOKENS, D_IN * (1 + (name == "transcoder, AuxK")))
    dead = torch.arange(LATENTS) < 20
    sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))  # sets initial parameters
    step_input = TrainStepInput(x, {}, dead, 1, False)
    torch.manual_seed(0)
    plain = sae.step_losses(step_input)
    torch.manual_seed(0)
    fast = compiled(sae.step_losses)(step_input)
    torch.testing.assert_close(fast.loss, plain.loss)
    assert torch.equal(fast.feature_acts.to_dense(), plain.feature_acts.to_dense())
    assert_equal_gradients(sae, fast.loss, plain.loss)


@pytest.mark.parametrize("name", IN_SPARSIFY)
def test_a_step_in_sparsify_is_one_graph(name: str):
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, **IN_SPARSIFY[name])
    coder = SparseCoder(D_IN, config).train()
    x, dead = torch.randn(TOKENS, D_IN), torch.arange(LATENTS) < 20
    coder(x)  # sets the firing rates
    coder(x)
    rates = coder.firing_rates.clone()
    losses: list[Tensor] = []
    for step in (coder.forward, compiled(coder.forward)):
        coder.firing_rates.copy_(rates)
        output = step(x, dead_mask=dead)
        losses.append(output.fvu + output.auxk_loss + output.multi_topk_fvu)
    torch.testing.assert_close(*losses)
    assert_equal_gradients(coder, *losses)
