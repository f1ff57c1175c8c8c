"""Picks by bounds in bfloat16 equal picks from all margins, and the bounds hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import CodeRule, Encoder, pack
from sae_binary_ext.coding.forms import encode_picks, infer_indices, infer_packed, screening
from sae_binary_ext.coding.forms import margins as margins_of_blocks
from sae_binary_ext.coding.forms.bounds import BoundsAbove, Finder, LargestBounds, spread
from sae_binary_ext.coding.forms.screening import BFLOAT16, Screen, pick
from sae_binary_ext.coding.kernels import processor

TOKENS, D_IN, LATENTS, K = 300, 64, 1024, 8
NEAR = CodeRule("topk", K, surrogate_latents="near")


def an_encoder(
    tokens: int = TOKENS, d_in: int = D_IN, latents: int = LATENTS, rule: CodeRule = NEAR
) -> Encoder:
    return Encoder(
        torch.randn(tokens, d_in),
        torch.randn(d_in, latents),
        torch.randn(latents),
        torch.randn(latents),
        torch.zeros(d_in),
        rule,
    )


def margins(encoder: Encoder) -> Tensor:
    """Returns all margins, float64 [tokens, latents]."""
    product = encoder.centred.double() @ encoder.weight.double()
    return product + encoder.bias.double() - encoder.log_threshold.double().exp()


def rounding_of(encoder: Encoder) -> Tensor:
    """Upper bound of float32's rounding error in a margin, [tokens, 1]."""
    norms = encoder.centred.norm(dim=-1, keepdim=True) * encoder.weight.norm(dim=0).max()
    return 2e-6 * (norms + encoder.bias.abs().max() + encoder.log_threshold.exp().max())


def in_order(values: Tensor) -> Tensor:
    """Returns the K picked values and the values after them, float64, each part sorted."""
    first, after = (
        part.sort(-1, descending=True).values for part in (values[:, :K], values[:, K:])
    )
    return torch.cat((first, after), -1).double()


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["largest bounds", "bounds above"])
def small_batches_screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Turns screening on for small batches on any processor, with either kind of candidates."""
    monkeypatch.setattr(screening, "WIDE", request.param)
    monkeypatch.setattr(processor, "FEWEST_TOKENS", 100)
    monkeypatch.setattr(processor, "FEWEST_DIMENSIONS", 32)
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: True)


@pytest.fixture
def picked_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens in each call that made all margins."""
    tokens: list[int] = []
    make = screening.margins_in_parts

    def spy(encoder: Encoder):
        tokens.append(len(encoder.centred))
        return make(encoder)

    monkeypatch.setattr(screening, "margins_in_parts", spy)
    return tokens


def normal(encoder: Encoder) -> Encoder:
    return encoder


def outliers(encoder: Encoder) -> Encoder:
    """One dimension is large on all tokens, another is huge on some tokens, as in models."""
    encoder.centred[:, 5] += 50
    encoder.centred[::40, 9] = 3000
    return encoder


def close_rivals(encoder: Encoder) -> Encoder:
    """Groups of four latents are equal up to digits that bfloat16 does not have."""
    first = encoder.weight[:, ::4]
    for other in (1, 2, 3):
        encoder.weight[:, other::4] = first * (1 + other * 2.0**-13)
    same = encoder.bias[::4].repeat_interleave(4), encoder.log_threshold[::4].repeat_interleave(4)
    return replace(encoder, bias=same[0], log_threshold=same[1])


def uneven_norms(encoder: Encoder) -> Encoder:
    encoder.weight.mul_(torch.randn(LATENTS).exp())
    return encoder


def large_offsets(encoder: Encoder) -> Encoder:
    return replace(encoder, bias=encoder.bias * 1000)


def none_fires(encoder: Encoder) -> Encoder:
    """Returns an encoder whose margins are all below zero."""
    return replace(encoder, log_threshold=torch.full((LATENTS,), 4.5))


def tiny(encoder: Encoder) -> Encoder:
    encoder.centred.mul_(1e-12)
    return replace(encoder, bias=encoder.bias * 1e-12, log_threshold=encoder.log_threshold - 30)


def whole_numbers(encoder: Encoder) -> Encoder:
    """Returns an encoder with many equal margins."""
    encoder.centred.round_()
    encoder.weight.round_()
    return replace(
        encoder, bias=encoder.bias.round(), log_threshold=torch.full((LATENTS,), -torch.inf)
    )


Change = Callable[[Encoder], Encoder]
each_data = pytest.mark.parametrize(
    "change",
    [normal, outliers, close_rivals, uneven_norms, large_offsets, none_fires, tiny, whole_numbers],
)


def assert_bounded(encoder: Encoder) -> None:
    screen = Screen.of(encoder)
    bounds = screen.upper_bounds(encoder.centred, screen.room(len(encoder.centred))).double()
    assert (margins(encoder) <= bounds + bounds.abs() * BFLOAT16).all()


@each_data
def test_no_margin_is_above_its_bound(change: Change):
    assert_bounded(change(an_encoder()))


@pytest.mark.parametrize("d_in", [7, 577, 4096])
@pytest.mark.parametrize("rounded", ["tokens", "weights", "both"])
@pytest.mark.parametrize("spread", [1, 128])
def test_no_margin_is_above_its_bound_where_rounding_errs_most(
    d_in: int, rounded: str, spread: int
):
    """All values are rounded down, and each latent's weights are parallel to a token.

    The latent's margin on that token is near 0, so that bfloat16 has enough digits for the bound.
    """
    even = 1 + torch.randint(0, spread, (20, d_in)) / 128
    errs = even + 2.0**-8 * 0.999
    x, weight = (errs if rounded in (which, "both") else even for which in ("tokens", "weights"))
    bias = -(x.double() * weight.double()).sum(-1).float()
    never = torch.full((20,), -torch.inf)
    assert_bounded(Encoder(x, weight.T.contiguous(), bias, never, torch.zeros(d_in), NEAR))


@pytest.mark.parametrize("rest", [0.9 * 2.0**-10, 0.9 * 2.0**-18], ids=["one number", "two"])
def test_no_margin_is_above_its_bound_by_what_numbers_of_bfloat16_leave_of_a_bias(rest: float):
    x, weight = torch.ones(1, 2), torch.tensor([[1], [1.5 * 2.0**-9]])
    bias = rest - weight.sum(0)
    assert_bounded(Encoder(x, weight, bias, torch.tensor([-torch.inf]), torch.zeros(2), NEAR))


def test_bounds_are_not_so_high_that_they_tell_nothing():
    encoder = an_encoder()
    screen = Screen.of(encoder)
    bounds = screen.upper_bounds(encoder.centred, screen.room(TOKENS)).double()
    norms = encoder.centred.norm(dim=-1, keepdim=True) * encoder.weight.norm(dim=0)
    scale = norms + encoder.bias.abs() + encoder.log_threshold.exp()
    assert (bounds - margins(encoder) <= 0.02 * scale).all()


MakeFinder = Callable[[Screen, Encoder, int], Finder]


def one_candidate_more(screen: Screen, encoder: Encoder, wanted: int) -> Finder:
    return LargestBounds(wanted + 1)


def too_few_bounds(screen: Screen, encoder: Encoder, wanted: int) -> Finder:
    """Returns a finder with a cut that leaves half of the tokens too few candidates."""
    bounds = screen.upper_bounds(encoder.centred, screen.room(TOKENS))
    mean, deviation = spread(bounds.float())
    least = bounds.topk(wanted + 1).values[:, -1]
    return BoundsAbove(((least - mean) / deviation).median(), 4 * wanted)


@pytest.mark.parametrize("change", [normal, outliers, close_rivals, uneven_norms, none_fires, tiny])
@pytest.mark.parametrize("more", [0, K])
@pytest.mark.parametrize("find", [one_candidate_more, too_few_bounds])
def test_what_is_said_to_be_proven_is_so(change: Change, more: int, find: MakeFinder):
    """No pick that is said to be proven is wrong, even if few candidates make many picks wrong."""
    encoder = change(an_encoder())
    screen = Screen.of(encoder)
    finder = find(screen, encoder, K + more)
    values, _, proven = screen.pick(encoder.centred, K, more, finder, screen.room(TOKENS))
    largest = margins(encoder).topk(K + more, dim=-1).values
    wrong = ((in_order(values) - largest).abs() > rounding_of(encoder)).any(-1)
    assert wrong.any()
    assert not (wrong & proven).any()


def test_latents_whose_bounds_round_to_the_same_are_not_told_apart_by_them():
    weight = torch.zeros(D_IN, LATENTS)
    weight[0], weight[1, 500:507] = -1, torch.tensor([3, 1, 7, 2, 6, 5, 4]) * 2.0**-11
    weight[0, 500:507] = 1
    x = torch.zeros(1, D_IN)
    x[0, :2] = 1
    none = torch.zeros(LATENTS)
    screen = Screen.of(Encoder(x, weight, none, none - torch.inf, torch.zeros(D_IN), NEAR))
    assert len(screen.upper_bounds(x, screen.room(1))[0, 500:507].unique()) == 1
    for candidates in range(2, 7):
        _, index, proven = screen.pick(x, 1, 0, LargestBounds(candidates), screen.room(1))
        assert not proven.any()
    _, index, proven = screen.pick(x, 1, 0, LargestBounds(8), screen.room(1))
    assert proven.all()
    assert index.item() == 502


@each_data
@pytest.mark.parametrize("more", [0, K])
def test_picks_are_the_largest_margins(change: Change, more: int):
    encoder = change(an_encoder())
    values, index = pick(encoder, more)
    every = margins(encoder)
    largest = every.topk(K + more, dim=-1)

    rounding = rounding_of(encoder)
    torch.testing.assert_close(
        values.double(), every.gather(-1, index), rtol=0, atol=rounding.max().item()
    )
    assert ((in_order(values) - largest.values).abs() <= rounding).all()
    assert all(len(set(row)) == K + more for row in index.tolist())


@pytest.mark.parametrize("threads", [2, 3])
def test_picks_do_not_depend_on_the_threads(threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(margins_of_blocks, "ROWS", 40)  # eight blocks or more
    encoder, before = an_encoder(), torch.get_num_threads()

    def picked(of_threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(of_threads)
        values, index = pick(encoder, K)
        # Other blocks may give the same latents in another order.
        order = values.argsort(-1, descending=True)
        return values.gather(-1, order), index.gather(-1, order)

    try:
        alone, together = picked(1), picked(threads)
    finally:
        torch.set_num_threads(before)
    for expected, found in zip(alone, together, strict=True):
        assert torch.equal(found, expected)


@each_data
def test_the_same_latents_fire_however_many_learn(change: Change):
    encoder = change(an_encoder())
    _, alone = pick(encoder)
    _, with_others = pick(encoder, K)
    assert torch.equal(alone.sort(-1).values, with_others[:, :K].sort(-1).values)


def test_few_tokens_need_all_margins(picked_whole: list[int]):
    pick(an_encoder(tokens=2000), K)
    assert sum(picked_whole) < 0.1 * 2000


def test_where_margins_are_equal_at_the_cut_all_margins_decide(picked_whole: list[int]):
    """Each latent has an equal twin, so an odd cut falls between two equal margins."""
    encoder = an_encoder()
    for part in (encoder.weight, encoder.bias, encoder.log_threshold):
        part[..., ::2] = part[..., 1::2]
    pick(replace(encoder, rule=CodeRule("topk", 8)))
    assert sum(picked_whole) < 0.2 * TOKENS
    picked_whole.clear()
    pick(replace(encoder, rule=CodeRule("topk", 7)))
    assert picked_whole == [TOKENS]


def test_bounds_that_tell_too_little_are_left_alone(picked_whole: list[int]):
    pick(an_encoder(d_in=4096, rule=CodeRule("topk", 110)))
    assert picked_whole == [TOKENS]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["a token", "all tokens", "a latent", "a bias", "a threshold"])
def test_values_that_are_not_finite_pick_what_all_margins_pick(value: float, where: str):
    encoder = an_encoder()
    if where == "a token":
        encoder.centred[7, 3] = value
    elif where == "all tokens":
        encoder.centred[:, 3] = value
    elif where == "a latent":
        encoder.weight[3, 7] = value
    elif where == "a bias":
        encoder.bias[7] = value
    else:
        encoder.log_threshold[7] = value
    fired, _ = infer_indices(replace(encoder, rule=CodeRule("topk", K)))
    expected, _ = screening.pick_from_all(encoder, 0)
    assert torch.equal(fired.sum(-1), (expected > 0).sum(-1))


@pytest.mark.parametrize("learning", ["selected", "near"])
def test_a_training_step_s_gradients_are_those_of_all_margins(
    learning: str, picked_whole: list[int], monkeypatch: pytest.MonkeyPatch
):
    plain = an_encoder(rule=CodeRule("topk", K, surrogate_latents=learning))
    gradients: list[list[Tensor]] = []
    for screens in (True, False):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda screens=screens: screens)
        leaves = [
            value.clone().requires_grad_()
            for value in (
                plain.centred,
                plain.weight,
                plain.bias,
                plain.log_threshold,
                plain.origin,
            )
        ]
        codes, picks, _ = encode_picks(Encoder(*leaves, plain.rule))
        incoming = torch.sin(picks.index.float())
        values = torch.zeros(TOKENS, LATENTS).scatter(-1, picks.index, codes)
        gradients.append([values.detach(), *torch.autograd.grad(codes, leaves, incoming)])
    assert picked_whole[-1] == TOKENS
    assert sum(picked_whole[:-1]) < 0.2 * TOKENS
    for screened, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(screened, whole, rtol=1e-4, atol=1e-4)


def test_packed_and_index_form_hold_the_same_codes(picked_whole: list[int]):
    encoder = an_encoder()
    codes, index = infer_indices(encoder)
    dense = torch.zeros(TOKENS, LATENTS).scatter(-1, index, codes)
    assert torch.equal(infer_packed(encoder), pack(dense))
    assert sum(picked_whole) < TOKENS


@pytest.mark.parametrize(
    "encoder",
    [
        an_encoder(tokens=99),
        an_encoder(d_in=31),
        an_encoder(latents=59),
        an_encoder(rule=CodeRule("groupmax", K)),
        replace(
            an_encoder(),
            centred=torch.randn(TOKENS, D_IN).double(),
            weight=torch.randn(D_IN, LATENTS).double(),
        ),
    ],
    ids=["few tokens", "few dimensions", "few latents", "groupmax", "float64"],
)
def test_where_bounds_would_not_pay_all_margins_are_made(encoder: Encoder, picked_whole: list[int]):
    pick(encoder)
    assert picked_whole == [len(encoder.centred)]


def test_under_autocast_all_margins_are_made(picked_whole: list[int]):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pick(an_encoder())
    assert picked_whole == [TOKENS]


def test_processors_without_bfloat16_make_all_margins(
    picked_whole: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: False)
    pick(an_encoder())
    assert picked_whole == [TOKENS]


@pytest.mark.parametrize("cached", [0, 2**22])
def test_torch_s_default_device_and_dtype_do_not_matter(
    cached: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "CACHED", cached)
    encoder = an_encoder()
    expected = pick(encoder, K)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = pick(encoder, K)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_rounding_up_lowers_no_number():
    values = torch.rand(10_000) * 10.0 ** torch.randint(-20, 20, (10_000,))
    assert (screening._rounded_up(values).float() >= values).all()
