"""Hooks of other layers are found, and the distance of firing rates is right."""

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_binary_ext.commands.transfer.transfer_run import firing_shift
from sae_binary_ext.measure.in_model import layer_hooks, layer_of


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=5, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_vocab=10, act_fn="relu"
        )
    )


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.12.hook_resid_pre", 12), ("model.layers.3", 3), ("transformer.h.0.mlp", 0)],
)
def test_a_hooks_layer_is_the_number_of_its_block(hook: str, layer: int):
    assert layer_of(hook) == layer


@pytest.mark.parametrize("hook", ["hook_embed", "model.norm", "blocks.x.hook_resid_pre"])
def test_a_hook_of_no_layer_is_refused(hook: str):
    with pytest.raises(ValueError, match=f"hook='{hook}': belongs to no layer"):
        layer_of(hook)


def test_all_other_layers_have_the_same_hook(model: HookedTransformer):
    pair = ("blocks.2.mlp.hook_pre", "blocks.2.hook_mlp_out")
    found = layer_hooks(model, pair, [4, 0])
    assert found == {
        0: ("blocks.0.mlp.hook_pre", "blocks.0.hook_mlp_out"),
        2: pair,
        4: ("blocks.4.mlp.hook_pre", "blocks.4.hook_mlp_out"),
    }


def test_every_third_layer_is_taken_and_the_coders_own(model: HookedTransformer):
    hook = "blocks.1.hook_resid_pre"
    assert list(layer_hooks(model, (hook, hook), [])) == [0, 1, 3]


def test_layers_that_the_model_lacks_are_named(model: HookedTransformer):
    hook = "blocks.1.hook_resid_pre"
    with pytest.raises(ValueError, match=r"layers=\[5, 9\].*\[0, 1, 2, 3, 4\]"):
        layer_hooks(model, (hook, hook), [0, 9, 5])


def test_a_coder_of_two_layers_is_refused(model: HookedTransformer):
    with pytest.raises(ValueError, match="reads one layer and predicts another"):
        layer_hooks(model, ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"), [])


def test_the_shift_is_a_bit_for_a_latent_that_does_the_contrary_and_0_for_the_same():
    home = torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64)
    assert firing_shift(home, home) == pytest.approx(0, abs=1e-12)
    assert firing_shift(home, torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)) == pytest.approx(
        2
    )
    # The divergence is H(1/4) - H(1/2) / 2.
    half = torch.tensor([0.5], dtype=torch.float64)
    assert firing_shift(half, torch.zeros_like(half)) == pytest.approx(0.8112781 - 0.5)
