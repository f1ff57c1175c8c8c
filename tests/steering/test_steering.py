"""Steered activations are x + decode(changed codes) - decode(codes). Models stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAETransformerBridge
from sae_lens.load_model import HookedProxyLM
from torch import Tensor, nn
from transformers import AutoTokenizer

from sae_binary_ext.measure.in_model import read_hooks
from sae_binary_ext.saelens.splice import resolve_hook
from sae_binary_ext.steering import CodeChange, Steering
from tests.layer_coders import LATENTS, WIDTH, layer_coder
from tests.steering import models
from tests.steering.models import HOOK, MODELS, MODULE, TOKENS, outputs_of

EXACT = {"rtol": 1e-12, "atol": 1e-12}
STRENGTH = 2.5
CODERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "binary": (lambda: models.binary("float64"), {}),
    "binary, topk": (lambda: models.binary("float64", selection="topk", k=8), {}),
    "binary, layer_norm": (
        lambda: models.binary("float64", normalize_activations="layer_norm"), {},
    ),
    "binary, constant norm": (
        lambda: models.binary("float64", normalize_activations="constant_norm_rescale"), {},
    ),
    "topk": (
        lambda: models.topk("float64", rescale_acts_by_decoder_norm=False), {"strength": STRENGTH},
    ),
    "topk, norms of rows": (
        lambda: models.topk("float64", rescale_acts_by_decoder_norm=True), {"strength": STRENGTH},
    ),
    "sparsify, binary": (lambda: models.sparsify_binary(torch.float64), {"hook": MODULE}),
    "sparsify, topk": (
        lambda: models.sparsify_topk(torch.float64), {"hook": MODULE, "strength": STRENGTH},
    ),
}  # fmt: skip


def changed_by_hand(
    codes: Tensor, on: list[int], off: list[int], flip: list[int], value: float
) -> Tensor:
    new = codes.clone()
    new[..., on], new[..., off] = value, 0.0
    new[..., flip] = torch.where(codes[..., flip] == 0, value, 0.0).to(codes)
    return new


@pytest.mark.parametrize("case", CODERS)
def test_activations_are_those_of_changed_codes(case: str, tiny_llama: Path):
    make, fields = CODERS[case]
    coder, model = make(), models.plain(tiny_llama, torch.float64)
    x = outputs_of(model)
    first, _ = models.codes_and_decode(coder, x, lambda codes: codes)
    # Half of the changed latents fire on some tokens, and half may be silent on all.
    fired = (first != 0).flatten(0, -2).any(0).nonzero()[:6, 0].tolist()
    others = [latent for latent in range(LATENTS) if latent not in fired]
    on, off, flip = (fired[n::3] + others[n : n + 1] for n in range(3))
    value = fields.get("strength", 1.0)
    codes, added = models.codes_and_decode(
        coder, x, lambda codes: changed_by_hand(codes, on, off, flip, value)
    )
    assert 0 < (codes[..., [*on, *off, *flip]] != 0).double().mean() < 1
    with Steering(model, CodeChange(coder, on, off, flip, first_position=0, **fields)):
        steered = outputs_of(model)
    torch.testing.assert_close(steered, x + added, **EXACT)
    assert added.abs().max() > 0.1
    # A coder keeps nothing of what it encoded.
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & vars(coder).keys()


def test_a_latent_that_is_on_adds_nothing(tiny_llama: Path):
    coder, model = models.binary(), models.plain(tiny_llama)
    x = outputs_of(model)
    on = coder.encode(x)
    latent = int(on.sum((0, 1)).argmax())
    with Steering(model, CodeChange(coder, set=[latent], first_position=0)):
        steered = outputs_of(model)
    fires = on[..., latent] == 1
    assert 0 < fires.float().mean() < 1 or fires.all()
    assert torch.equal(steered[fires], x[fires])
    row = coder.W_dec[latent].expand_as(x)
    torch.testing.assert_close(steered[~fires], (x + row)[~fires])


def test_earlier_tokens_stay_as_they_are(tiny_llama: Path):
    coder, model = models.binary(), models.plain(tiny_llama)
    x = outputs_of(model)
    with Steering(model, CodeChange(coder, flip=[5], first_position=4)):
        steered = outputs_of(model)
    assert torch.equal(steered[:, :4], x[:, :4])
    assert ((steered - x)[:, 4:].abs().amax(-1) > 0).all()


def test_a_rule_chooses_tokens_by_the_codes_before_the_change(tiny_llama: Path):
    coder, model = models.binary(), models.plain(tiny_llama)
    x = outputs_of(model)
    codes = coder.encode(x)
    first, second = (codes.mean((0, 1)) - 0.5).abs().argsort()[:2].tolist()
    holds = (codes[..., first] == 1) & (codes[..., second] == 0)
    assert 0 < holds.sum() < holds.numel()
    change = CodeChange(coder, flip=[first, 9], where=f"{first} & !{second}", first_position=0)
    with Steering(model, change):
        steered = outputs_of(model)
    assert torch.equal((steered - x).abs().amax(-1) > 0, holds)
    with Steering(model, CodeChange(coder, set=[9], where=change.where, first_position=0)):
        moved = (outputs_of(model) - x).abs().amax(-1) > 0
    assert torch.equal(moved, holds & (codes[..., 9] == 0))
    assert moved.any()


def test_changes_of_one_coder_apply_one_after_the_other(tiny_llama: Path):
    coder, model = models.binary(), models.plain(tiny_llama)
    once, twice = CodeChange(coder, set=[5]), CodeChange(coder, set=[5, 6])
    with Steering(model, twice):
        expected = outputs_of(model)
    with Steering(model, once, twice):
        assert torch.equal(outputs_of(model), expected)
    with Steering(model, CodeChange(coder, clear=[5, 6]), twice):
        assert torch.equal(outputs_of(model), expected)


def test_each_change_has_its_own_first_position(tiny_llama: Path):
    coder, model = models.binary(), models.plain(tiny_llama)
    changes = [CodeChange(coder, flip=[each], first_position=each) for each in (3, 6)]
    x = outputs_of(model)
    codes = coder.encode(x)
    by_hand = x.clone()
    for latent in (3, 6):
        by_hand += ((1 - 2 * codes[..., latent, None]) * coder.W_dec[latent]) * (
            torch.arange(x.shape[1]) >= latent
        )[:, None]
    with Steering(model, *changes):
        torch.testing.assert_close(outputs_of(model), by_hand)


def test_coders_of_several_layers_act_at_once(tiny_llama: Path):
    model = models.plain(tiny_llama)
    low, high = models.binary(), models.binary()
    low.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    changes = CodeChange(low, set=[1, 2]), CodeChange(high, flip=[3])
    with Steering(model, *changes):
        both = outputs_of(model)
    with Steering(model, changes[0]):
        before = outputs_of(model)
    codes = high.encode(before)[..., 3:4]
    by_hand = before + (1 - 2 * codes) * high.W_dec[3]
    torch.testing.assert_close(both[:, 1:], by_hand[:, 1:])


def test_two_coders_of_one_hook_read_the_same_activation(tiny_llama: Path):
    model, first, second = models.plain(tiny_llama), models.binary(), models.binary()
    changes = CodeChange(first, flip=[3]), CodeChange(second, flip=[3])
    x = outputs_of(model)
    added = [torch.zeros_like(x), torch.zeros_like(x)]
    for place, change in enumerate(changes):
        with Steering(model, change):
            added[place] = outputs_of(model) - x
    with Steering(model, *changes):
        torch.testing.assert_close(outputs_of(model), x + added[0] + added[1])


@pytest.mark.parametrize("kind", ["threshold", "stock"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reads_at_one_hook_and_writes_at_another(
    kind: str, skip: bool, tiny_llama: Path
):
    model, coder = models.plain(tiny_llama), layer_coder(kind, 1, skip)
    coder.cfg.metadata.hook_name, coder.cfg.metadata.hook_name_out = (
        "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out",
    )  # fmt: skip
    value = {} if kind == "threshold" else {"strength": STRENGTH}
    read = outputs_of(model, module="layers.1.post_attention_layernorm")
    written = outputs_of(model, module="layers.1.mlp")
    codes = coder.encode(read)
    difference = changed_by_hand(codes, [4], [], [7], value.get("strength", 1.0)) - codes
    by_hand = written + difference.detach() @ coder.W_dec.detach()
    with Steering(model, CodeChange(coder, set=[4], flip=[7], **value)):
        steered = outputs_of(model, module="layers.1.mlp")
    torch.testing.assert_close(steered[:, 1:], by_hand[:, 1:])
    assert torch.equal(steered[:, 0], written[:, 0])
    # The bridge has the same logits.
    with Steering(model, CodeChange(coder, set=[4], flip=[7], **value)), torch.no_grad():
        expected = model(TOKENS).logits
    hooked = models.bridge(tiny_llama)
    with Steering(hooked, CodeChange(coder, set=[4], flip=[7], **value)), torch.no_grad():
        torch.testing.assert_close(hooked(TOKENS), expected, rtol=1e-4, atol=1e-5)


def logits_of(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        output = model(tokens)
    return getattr(output, "logits", output)


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
def test_all_kinds_of_models_give_the_same_logits(host: str, tiny_llama: Path):
    coder = models.binary() if host == "saelens" else models.sparsify_binary()
    hook = None if host == "saelens" else MODULE
    change = CodeChange(coder, set=[1, 2], flip=[3], where="!4", hook=hook)
    found: dict[str, Tensor] = {}
    for name, make in MODELS.items():
        model = make(tiny_llama)
        with Steering(model, change):
            found[name] = logits_of(model)
        assert not torch.allclose(found[name], logits_of(model), atol=1e-2)
    for name in ("bridge", "hooked"):
        torch.testing.assert_close(found[name], found["plain"], rtol=1e-4, atol=1e-5)


def test_a_model_with_hooks_of_modules_is_steered(tiny_llama: Path):
    coder, plain = models.binary(), models.new_plain(tiny_llama)
    with Steering(plain, CodeChange(coder, flip=[3])):
        expected = logits_of(plain)
    coder.cfg.metadata.hook_name = "model.layers.1"
    model = HookedProxyLM(plain, AutoTokenizer.from_pretrained(tiny_llama))
    with Steering(model, CodeChange(coder, flip=[3])):
        torch.testing.assert_close(logits_of(model), expected)
    with Steering(plain, CodeChange(coder, flip=[3])):
        torch.testing.assert_close(logits_of(plain), expected)


def hooks_in(model: nn.Module) -> list[Any]:
    """All hooks of all modules of a model."""
    found: list[Any] = []
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found += getattr(module, name).values()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_as_before_also_after_an_exception(name: str, tiny_llama: Path):
    model: Any = MODELS[name](tiny_llama)
    inner = model.original_model if isinstance(model, SAETransformerBridge) else model
    before, hooks = logits_of(model), hooks_in(inner)
    steering = Steering(model, CodeChange(models.binary(), set=[1]))
    assert len(hooks_in(inner)) == len(hooks)
    with steering:
        assert len(hooks_in(inner)) > len(hooks)
        logits_of(model)
    assert hooks_in(inner) == hooks
    with pytest.raises(IndexError), steering:
        logits_of(model, torch.full_like(TOKENS, 10**6))
    assert hooks_in(inner) == hooks
    assert torch.equal(logits_of(model), before)


def test_the_coder_learns_nothing_and_the_model_keeps_its_gradient(tiny_llama: Path):
    model = models.new_plain(tiny_llama)
    coder = models.binary().requires_grad_(True)
    with Steering(model, CodeChange(coder, flip=[3])):
        model(TOKENS).logits.sum().backward()
    assert all(parameter.grad is None for parameter in coder.parameters())
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_a_model_in_bfloat16_stays_so(tiny_llama: Path):
    model = models.plain(tiny_llama, torch.bfloat16)
    with Steering(model, CodeChange(models.binary(), flip=[3])):
        assert outputs_of(model).dtype == torch.bfloat16


def wider() -> Any:
    config = models.BinarySAEConfig(d_in=WIDTH + 1, d_sae=LATENTS)
    config.metadata.hook_name = HOOK
    return models.BinarySAE(config)


def test_a_coder_of_another_width_is_refused(tiny_llama: Path):
    for name in ("plain", "bridge"):
        model: Any = MODELS[name](tiny_llama)
        told = "takes 17 to 17 dimensions, and the model has 16 and 16"
        with pytest.raises(ValueError, match=told), Steering(model, CodeChange(wider(), set=[1])):
            logits_of(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_hook_that_the_model_lacks_is_refused(name: str, tiny_llama: Path):
    coder = models.binary()
    coder.cfg.metadata.hook_name = "blocks.7.hook_resid_post"
    with pytest.raises(
        ValueError, match=r"'(blocks\.7\.hook_resid_post|layers\.7)': the model has no"
    ):
        Steering(MODELS[name](tiny_llama), CodeChange(coder, set=[1]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("make", [models.binary, models.sparsify_binary])
def test_a_coder_of_no_known_hook_is_refused(name: str, make: Any, tiny_llama: Path):
    coder = make()
    if make is models.binary:
        coder.cfg.metadata.hook_name = None
    model = MODELS[name](tiny_llama)
    with pytest.raises(ValueError, match="hook=None: the files of this Binary"):
        Steering(model, CodeChange(coder, set=[1]))
    with Steering(model, CodeChange(coder, set=[1], hook=MODULE)):
        logits_of(model)


def test_a_hook_that_is_off_is_told(tiny_llama: Path):
    coder, model = models.binary(), MODELS["hooked"](tiny_llama)
    coder.cfg.metadata.hook_name = "blocks.1.hook_mlp_in"
    change = CodeChange(coder, set=[1])
    with pytest.raises(ValueError, match=r"did not pass through .*blocks\.1\.hook_mlp_in"):  # noqa: SIM117
        with Steering(model, change):
            logits_of(model)
    with Steering(model, change):
        pass  # no forward pass, so nothing is missing


def test_a_hook_before_the_mask_is_made_is_refused(tiny_llama: Path):
    coder = models.binary()
    coder.cfg.metadata.hook_name = "hook_embed"
    with pytest.raises(ValueError, match="does not tell there which tokens are padding"):
        Steering(MODELS["hooked"](tiny_llama), CodeChange(coder, set=[1]))
    model = models.bridge(tiny_llama)
    with Steering(model, CodeChange(coder, set=[1])):
        logits_of(model)


def test_other_models_and_no_changes_are_refused(tiny_llama: Path):
    change = CodeChange(models.binary(), set=[1])
    with pytest.raises(ValueError, match="model=Linear: steering takes"):
        Steering(nn.Linear(2, 2), change)
    with pytest.raises(ValueError, match="changes: none were given"):
        Steering(models.plain(tiny_llama))


@pytest.mark.parametrize("name", ["bridge", "hooked"])
def test_a_coder_of_all_heads_is_steered(name: str, tiny_llama: Path):
    coder: Any = models.binary(reshape_activations="hook_z")
    coder.cfg.metadata.hook_name = "blocks.1.attn.hook_z"
    assert coder.hook_z_reshaping_mode
    model = MODELS[name](tiny_llama)
    hook = resolve_hook(model, "hook", "blocks.1.attn.hook_z")
    own = read_hooks(model, [hook], TOKENS)[hook]
    with Steering(model, CodeChange(coder, set=[3], flip=[5])):
        steered = read_hooks(model, [hook], TOKENS)[hook]
    assert coder.hook_z_reshaping_mode
    coder.turn_off_forward_pass_hook_z_reshaping()
    codes = coder.encode(own)
    difference = changed_by_hand(codes, [3], [], [5], 1.0) - codes
    by_hand = own + difference @ coder.W_dec
    torch.testing.assert_close(steered[:, 1:], by_hand[:, 1:])
