import torch

from sae_binary_ext.commands.demo.coders import plan_coders, shuffled_batches
from sae_binary_ext.commands.demo.config import DemoConfig


def test_batches_hold_every_token_once_an_epoch_and_repeat_with_the_seed():
    activations = torch.arange(20, dtype=torch.float16)[:, None]
    batches = shuffled_batches(activations, 5, seed=3)
    first, second = ([next(batches) for _ in range(4)] for _ in range(2))
    for epoch in (first, second):
        assert torch.cat(epoch).flatten().sort().values.tolist() == list(range(20))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    again = shuffled_batches(activations, 5, seed=3)
    assert torch.equal(torch.cat([next(again) for _ in range(4)]), torch.cat(first))


def test_the_plan_compares_binary_and_stock_coders_of_the_sizes_asked_for():
    plans = {plan.name: plan.sae for plan in plan_coders(DemoConfig(k=16, expansion=4), 10)}
    sizes = {name: (sae.architecture(), sae.d_sae) for name, sae in plans.items()}
    assert sizes == {
        "binary": ("binary", 40),
        "binary_entropy": ("binary_entropy", 20),
        "binary_entropy, term off": ("binary_entropy", 20),
        "topk": ("topk", 40),
        "jumprelu": ("jumprelu", 40),
    }
