"""Heads of a hook."""

from types import SimpleNamespace

import pytest
import torch

from sae_binary_ext.saelens.hook_views import HookView

ROWS, CONTEXT, HEADS, WIDTH = 2, 3, 4, 5
MODEL = SimpleNamespace(cfg=SimpleNamespace(d_head=WIDTH))


def test_names_are_those_of_indexing():
    assert HookView.of("blocks.0.attn.hook_z[3]") == HookView("blocks.0.attn.hook_z", 3)
    assert str(HookView("blocks.0.attn.hook_z", 3)) == "blocks.0.attn.hook_z[3]"
    assert HookView.of("blocks.0.attn.hook_z") == HookView("blocks.0.attn.hook_z")


@pytest.mark.parametrize("apart", [True, False], ids=["heads apart", "heads side by side"])
def test_a_head_is_read_and_replaced_alone(apart: bool):
    heads = torch.randn(ROWS, CONTEXT, HEADS, WIDTH)
    output = heads if apart else heads.flatten(2)
    before = output.clone()
    view, new = HookView("hook", 2), torch.randn(ROWS, CONTEXT, WIDTH)
    assert torch.equal(view.read(MODEL, output), heads[:, :, 2])
    changed = view.write(MODEL, output, new)
    assert changed.shape == output.shape
    expected = heads.clone()
    expected[:, :, 2] = new
    assert torch.equal(changed.view(heads.shape), expected)
    # The model's own tensor stays as it was.
    assert torch.equal(output, before)


def test_all_heads_lie_side_by_side():
    heads = torch.randn(ROWS, CONTEXT, HEADS, WIDTH)
    view, flat = HookView("hook"), heads.flatten(2)
    assert torch.equal(view.read(MODEL, heads), flat)
    assert torch.equal(view.write(MODEL, heads, 2 * flat), 2 * heads)
    assert view.read(MODEL, flat) is flat


def test_heads_that_are_not_there_are_named():
    output = torch.zeros(ROWS, CONTEXT, HEADS, WIDTH)
    with pytest.raises(ValueError, match=r"hook\[4\]: the hook has heads 0 to 3"):
        HookView("hook", 4).read(MODEL, output)
    with pytest.raises(ValueError, match=r"hook\[1\]: the hook has 20 dimensions and no heads"):
        HookView("hook", 1).read(SimpleNamespace(), output.flatten(2))
