"""Layers are divided into passes that fit in memory."""

import pytest
import torch
from sae_lens import TrainingSAE

from sae_binary_ext.saelens import BinaryTranscoderTrainingSAEConfig, TranscoderRunnerConfig
from sae_binary_ext.saelens.layers import Cost, budget, cost_of_pair, passes
from sae_binary_ext.saelens.pairs import HookPair

HOOKS = [HookPair(f"in{n}", f"out{n}") for n in range(5)]


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [(1000, [5]), (500, [5]), (499, [4, 1]), (250, [2, 2, 1]), (100, [1] * 5), (1, [1] * 5)],
)
def test_passes_fit_in_memory(budget: float, sizes: list[int]):
    """Weights of trained coders, 10 each, leave less memory to later passes."""
    groups = passes(dict.fromkeys(HOOKS, Cost(training=100, trained=10)), budget)
    assert [len(group) for group in groups] == sizes
    assert [hooks for group in groups for hooks in group] == HOOKS


def test_trained_coders_leave_less_memory():
    groups = passes(dict.fromkeys(HOOKS, Cost(training=100, trained=60)), 300)
    assert [len(group) for group in groups] == [3, 1, 1]


def test_a_pair_costs_its_coders_and_its_rows():
    sizes = {"d_in": 6, "d_out": 9, "d_sae": 40, "k": 4}
    config = BinaryTranscoderTrainingSAEConfig(**sizes)
    run = TranscoderRunnerConfig(
        saes={"it": config},
        hook_name="in",
        hook_name_out="out",
        context_size=10,
        n_batches_in_buffer=8,
        store_batch_size_prompts=2,
        train_batch_size_tokens=50,
        memory_gb=1.0,
    )
    coder = TrainingSAE.from_dict(config.to_dict())
    weights = 4 * sum(each.numel() for each in coder.parameters())
    rows = (2 * 80 + 4 * 20 + 50) * 15 * 4
    assert cost_of_pair([config], run) == Cost(4 * weights + rows, weights)
    assert cost_of_pair([config, config], run) == Cost(8 * weights + rows, 2 * weights)
    run.act_store_device = "meta"
    assert cost_of_pair([config], run) == Cost(4 * weights, weights)
    assert budget(run) == 1e9 - 4 * 4 * 50 * 40
    run.memory_gb = None
    assert 0 < budget(run) < 1e13
    assert torch.get_default_device() == torch.device("cpu")
