import ast
from pathlib import Path

import pytest
import torch

import sae_binary_ext
from sae_binary_ext.coding import SELECTIONS, SURROGATES
from sae_binary_ext.coding.selection import CodeRule, pick_latents, select_codes
from tests.cases import GROUPS, LATENTS, each_selection


@each_selection
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("shape", [(50, LATENTS), (5, 10, LATENTS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_codes_are_exactly_zero_or_one(
    selection: str, noise: bool, shape: tuple[int, ...], dtype: torch.dtype
):
    rule = CodeRule(selection, GROUPS)
    codes = select_codes(torch.randn(shape, dtype=dtype), rule, noise)
    assert codes.shape == shape
    assert codes.dtype == dtype
    assert set(codes.flatten().tolist()) == {0.0, 1.0}


def test_topk_fires_the_largest_positive_margins():
    margin = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-3.0, 0.5, -2.0, -1.0]])
    codes = select_codes(margin, CodeRule("topk", 2), noise=False)
    assert codes.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


def test_groupmax_fires_at_most_the_largest_of_each_group():
    margin = torch.tensor([[3.0, 4.0, -2.0, -1.0]])
    codes = select_codes(margin, CodeRule("groupmax", 2), noise=False)
    assert codes.tolist() == [[0, 1, 0, 0]]


def test_threshold_fires_every_positive_margin():
    margin = torch.tensor([[3.0, 4.0, -2.0, 0.0]])
    assert select_codes(margin, CodeRule("threshold"), noise=False).tolist() == [[1, 1, 0, 0]]


def test_gumbel_fires_one_a_group_and_samples_only_with_noise():
    margin = torch.randn(400, LATENTS)
    rule = CodeRule("gumbel", GROUPS)
    quiet = select_codes(margin, rule, noise=False)
    assert torch.equal(quiet, select_codes(margin, rule, noise=False))
    assert torch.equal(quiet.sum(-1), torch.full((400,), float(GROUPS)))
    noisy = select_codes(margin, rule, noise=True)
    assert torch.equal(noisy.sum(-1), quiet.sum(-1))
    assert not torch.equal(noisy, quiet)


def test_gumbel_samples_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    samples = select_codes(logits.expand(40_000, 4), CodeRule("gumbel", 1), noise=True)
    torch.testing.assert_close(samples.mean(0), logits.softmax(0), atol=0.01, rtol=0)


@each_selection
def test_codes_differ_between_draws_only_if_the_selection_samples(selection: str):
    margin = torch.randn(20, LATENTS)
    rule = CodeRule(selection, GROUPS)
    same = torch.equal(select_codes(margin, rule, True), select_codes(margin, rule, False))
    assert same == (not rule.kind.samples)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": "best"}, r"selection='best'.*topk"),
        ({"surrogate": "tanh"}, r"surrogate='tanh'.*sigmoid"),
        ({"surrogate_temperature": 0.0}, r"surrogate_temperature=0.0.*positive"),
        ({"surrogate_temperature": -1.0}, r"surrogate_temperature=-1.0.*positive"),
        ({"surrogate_temperature": float("nan")}, r"surrogate_temperature=nan.*positive"),
        ({"k": 0}, r"k=0.*at least 1"),
        ({"selection": "gumbel", "surrogate": "reste"}, r"surrogate='reste'.*'sigmoid'"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        CodeRule(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (CodeRule("topk", 25), r"k=25.*24 latents"),
        (CodeRule("groupmax", 7), r"k=7.*24 is not a multiple of 7"),
        (CodeRule("gumbel", 5), r"k=5.*24 is not a multiple of 5"),
    ],
)
def test_k_that_does_not_suit_the_latents_is_named(rule: CodeRule, message: str):
    with pytest.raises(ValueError, match=message):
        rule.check_latents(24)


def test_threshold_does_not_mind_k():
    CodeRule("threshold", 1000).check_latents(24)


def test_a_selection_without_candidates_has_no_index_form():
    with pytest.raises(ValueError, match=r"selection='threshold'.*topk"):
        pick_latents(torch.randn(2, LATENTS), CodeRule("threshold"))


PACKAGE = Path(sae_binary_ext.__file__).parent
# Leave out "binary", which is also the name of an architecture.
NAMES = {
    *SELECTIONS,
    *(selection.activation for selection in SELECTIONS.values()),
    *SURROGATES,
    *(surrogate.ste for surrogate in SURROGATES.values()),
} - {"binary"}
# Names that other coders use: SAELens' topk, a branch of Quirke et al., outputs of Cho et al.
OF_OTHERS = {
    ("checkpoints/cho2025.py", "sigmoid"),
    ("checkpoints/saelens.py", "topk"),
    ("checkpoints/sparsify.py", "topk_binary"),
    ("checkpoints/stock.py", "topk"),
    ("coding/reference.py", "gumbel"),
}


def test_no_module_asks_which_selection_or_surrogate_it_is():
    """Modules read the fields of Selection and do not compare names of selections or surrogates."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), part.value)
        for path in PACKAGE.rglob("*.py")
        for comparison in ast.walk(ast.parse(path.read_text()))
        if isinstance(comparison, ast.Compare)
        for part in ast.walk(comparison)
        if isinstance(part, ast.Constant) and part.value in NAMES
    }
    assert found <= OF_OTHERS
