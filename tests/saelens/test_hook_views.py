"""HookView reads and writes a whole hook or one of its heads."""

from types import SimpleNamespace

import pytest
import torch

from sae_binary_ext.saelens.splice import HookView

ROWS, CONTEXT, HEADS, WIDTH = 2, 3, 4, 5
HOOK = "blocks.0.attn.hook_z"
MODEL = SimpleNamespace(cfg=SimpleNamespace(d_head=WIDTH))


def test_names_are_those_of_indexing():
    assert HookView.of(f"{HOOK}[3]") == HookView(HOOK, 3)
    assert str(HookView(HOOK, 3)) == f"{HOOK}[3]"
    assert HookView.of(HOOK) == HookView(HOOK)


@pytest.mark.parametrize("apart", [True, False], ids=["heads apart", "heads side by side"])
def test_a_head_is_read_and_replaced_alone(apart: bool):
    heads = torch.randn(ROWS, CONTEXT, HEADS, WIDTH)
    output = heads if apart else heads.flatten(2)
    before = output.clone()
    view, new = HookView(HOOK, 2), torch.randn(ROWS, CONTEXT, WIDTH)
    assert torch.equal(view.read(MODEL, output), heads[:, :, 2])
    changed = view.write(MODEL, output, new)
    assert changed.shape == output.shape
    expected = heads.clone()
    expected[:, :, 2] = new
    assert torch.equal(changed.view(heads.shape), expected)
    # The model's own tensor does not change.
    assert torch.equal(output, before)


def test_all_heads_lie_side_by_side():
    heads = torch.randn(ROWS, CONTEXT, HEADS, WIDTH)
    view, flat = HookView(HOOK), heads.flatten(2)
    assert torch.equal(view.read(MODEL, heads), flat)
    assert torch.equal(view.write(MODEL, heads, 2 * flat), 2 * heads)
    assert view.read(MODEL, flat) is flat


def test_heads_that_are_not_there_are_named():
    output = torch.zeros(ROWS, CONTEXT, HEADS, WIDTH)
    with pytest.raises(
        ValueError, match=r"hook_z\[4\]: the hook has 4 heads. Give a head from 0 to 3"
    ):
        HookView(HOOK, 4).read(MODEL, output)
    with pytest.raises(ValueError, match=r"hook_z\[1\]: .* 20 wide and have no heads"):
        HookView(HOOK, 1).read(SimpleNamespace(), output.flatten(2))


@pytest.mark.parametrize("hook", ["attn.q.hook_out", "attn.k.hook_out", "attn.o.hook_in"])
def test_a_bridge_s_own_names_of_hooks_with_heads(hook: str):
    heads = torch.randn(ROWS, CONTEXT, HEADS, WIDTH)
    view = HookView(f"blocks.0.{hook}", 1)
    assert torch.equal(view.read(MODEL, heads.flatten(2)), heads[:, :, 1])


@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_out", "attn.hook_out", "attn.q.hook_in"])
def test_an_activation_without_heads_is_not_cut_into_slices(hook: str):
    """A bridge's residual stream is as wide as all heads together, but has no heads."""
    output = torch.zeros(ROWS, CONTEXT, HEADS * WIDTH)
    with pytest.raises(ValueError, match="Give a hook with heads"):
        HookView(f"blocks.0.{hook}", 0).read(MODEL, output)
