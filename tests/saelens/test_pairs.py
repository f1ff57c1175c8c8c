import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedTransformer import HookedRootModule

from sae_binary_ext.saelens.pairs import (
    HookPair,
    PairScaler,
    check_pairs,
    pair_batches,
    split_pairs,
)

D_IN, D_OUT, VOCABULARY = 6, 9, 5000
HOOKS = HookPair("hook_in", "hook_out")
MODES = ("expected_average_only_in", "covariance_whitening")
each_mode = pytest.mark.parametrize("mode", MODES)


class ToyModel(HookedRootModule):
    """A model in which each token has its own input, and the target is a function of that input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, D_IN))
        self.weight = torch.randn(D_IN, D_OUT)
        self.hook_in, self.hook_out, self.hook_pairwise = HookPoint(), HookPoint(), HookPoint()
        self.hook_idle = HookPoint()
        self.setup()

    def target_of(self, x: Tensor) -> Tensor:
        return (x @ self.weight).sin()

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        x = self.hook_in(self.table[tokens])
        # This hook has one row for every pair of tokens, as in an attention pattern.
        self.hook_pairwise(x.new_zeros(len(x), 2, x.shape[1], D_OUT))
        return self.hook_out(self.target_of(x))


def store_of(model: ToyModel, hook_name_out: str = "hook_out", **settings: Any) -> ActivationsStore:
    context = settings.get("context_size", 8)
    # No token appears twice, so each pair identifies its token.
    rows = torch.randperm(VOCABULARY)[: VOCABULARY // context * context].view(-1, context)
    return ActivationsStore.from_config_multi_hook(
        model=model,
        dataset=Dataset.from_dict({"tokens": rows.tolist()}),
        hook_names=["hook_in", hook_name_out],
        hook_d_ins={"hook_in": D_IN, hook_name_out: D_OUT},
        streaming=False,
        **{
            "context_size": context,
            "store_batch_size_prompts": 4,
            "train_batch_size_tokens": 16,
            "n_batches_in_buffer": 8,
            "prepend_bos": False,
            **settings,
        },
    )


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batches_in_buffer", [4, 8, 33])
@pytest.mark.parametrize(
    ("context_size", "seqpos_slice"), [(5, (None,)), (8, (1, None)), (16, (2, -1))]
)
def test_pairs_belong_together_after_shuffling(
    context_size: int, batches_in_buffer: int, seqpos_slice: Any, mixing: float
):
    model = ToyModel()
    store = store_of(
        model,
        context_size=context_size,
        n_batches_in_buffer=batches_in_buffer,
        seqpos_slice=seqpos_slice,
        activations_mixing_fraction=mixing,
        train_batch_size_tokens=8,
        exclude_special_tokens=torch.arange(100),
    )
    batches = itertools.islice(pair_batches(store, [HOOKS]), 100)
    inputs, targets = split_pairs(torch.cat([batch[HOOKS.name] for batch in batches]), D_IN, D_OUT)
    assert len(inputs) == 800
    torch.testing.assert_close(targets, model.target_of(inputs))
    tokens = (inputs[:, None] == model.table).all(-1).int().argmax(-1)
    assert len(tokens.unique()) == 800
    assert tokens.min() >= 100


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
def test_pairs_are_shuffled():
    model = ToyModel()
    first, second = (
        next(pair_batches(store_of(model, **settings), [HOOKS]))[HOOKS.name]
        for settings in ({"activations_mixing_fraction": 0.0}, {"activations_mixing_fraction": 0.5})
    )
    assert first.shape == second.shape == (16, D_IN + D_OUT)
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
@pytest.mark.parametrize(
    ("hook_name_out", "d_in", "d_out", "message"),
    [
        ("hook_out", D_IN, D_OUT, None),
        ("hook_out", D_IN, D_OUT + 1, f"d_out={D_OUT + 1}.*'hook_out' are {D_OUT} wide"),
        ("hook_out", D_IN - 1, D_OUT, f"d_in={D_IN - 1}.*'hook_in' are {D_IN} wide"),
        ("hook_pairwise", D_IN, D_OUT, "hook_in.*hook_pairwise.*different numbers of tokens"),
        ("hook_idle", D_IN, D_OUT, "'hook_idle'.*does not pass through"),
    ],
)
def test_hooks_that_make_no_pairs_are_named(
    hook_name_out: str, d_in: int, d_out: int, message: str | None
):
    store = store_of(ToyModel(), hook_name_out)
    widths = {HookPair("hook_in", hook_name_out): (d_in, d_out)}
    if message is None:
        check_pairs(store, widths)
        return
    with pytest.raises(ValueError, match=message):
        check_pairs(store, widths)


def test_rows_that_are_no_pairs_are_named():
    with pytest.raises(ValueError, match=r"\(4, 6\).*d_in=6 and d_out=9.*15 wide"):
        split_pairs(torch.zeros(4, D_IN), D_IN, D_OUT)


def some_pairs() -> Tensor:
    inputs = 0.01 * torch.randn(4000, D_IN) + 0.02
    targets = 50 * torch.randn(4000, D_OUT) @ torch.randn(D_OUT, D_OUT) - 300
    return torch.cat([inputs, targets], dim=1)


def estimate(scaler: PairScaler, mode: str, pairs: Tensor) -> None:
    if mode == "covariance_whitening":
        scaler.estimate_whitening(D_IN, iter(pairs.split(400)), 10, eps=1e-9)
    else:
        scaler.estimate_scaling_factor(D_IN, iter(pairs.split(400)), 10)


@each_mode
def test_inputs_and_targets_are_scaled_apart(mode: str):
    pairs, scaler = some_pairs(), PairScaler(D_IN)
    assert torch.equal(scaler.scale(pairs), pairs)
    estimate(scaler, mode, pairs)
    for part in split_pairs(scaler.scale(pairs), D_IN, D_OUT):
        if mode == "covariance_whitening":
            torch.testing.assert_close(part.T.cov(), torch.eye(part.shape[1]), atol=0.02, rtol=0)
            torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-3, rtol=0)
        else:
            assert part.norm(dim=-1).mean().item() == pytest.approx(part.shape[1] ** 0.5)
    torch.testing.assert_close(scaler.unscale(scaler.scale(pairs)), pairs, rtol=1e-4, atol=1e-3)


@each_mode
def test_checkpoints_keep_the_scaling(mode: str, tmp_path: Path):
    pairs, scaler, loaded = some_pairs(), PairScaler(D_IN), PairScaler(D_IN)
    estimate(scaler, mode, pairs)
    scaler.save(str(tmp_path / "scaler.json"))
    loaded.load(tmp_path / "scaler.json")
    assert torch.equal(loaded.scale(pairs), scaler.scale(pairs))
    assert loaded.scaling_factor == scaler.scaling_factor
