"""The layers that a run trains transcoders of, and how many layers fit in memory at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.load_model import HookedProxyLM
from sae_lens.util import str_to_dtype

from sae_binary_ext.saelens.pairs import WHITENING, HookPair
from sae_binary_ext.saelens.runner_config import TranscoderRunnerConfig

# A weight, its gradient, and two moments of Adam.
_ARRAYS_OF_A_WEIGHT = 4
# Arrays [tokens, d_sae] that a training step makes: pre-activations, codes and their gradients.
_ARRAYS_OF_A_STEP = 4
# The share of free memory that a run takes if none is given.
_SHARE_OF_FREE = 0.8


def layer_count(model: Any) -> int:
    """Number of layers of a model that SAELens trains on; ValueError if the model has none."""
    if isinstance(model, HookedProxyLM):
        config: Any = model.model.config
        return config.get_text_config().num_hidden_layers
    count = getattr(getattr(model, "cfg", None), "n_layers", None)
    if count is None:
        raise ValueError(
            f"layers=None: the {type(model).__name__} does not say how many layers it has. Give "
            "the numbers of its layers."
        )
    return count


@dataclass(frozen=True)
class Cost:
    """Bytes that the transcoders of one pair of hooks take: in training, and once trained."""

    training: int
    trained: int


def cost_of_pair(configs: Iterable[TrainingSAEConfig], run: TranscoderRunnerConfig) -> Cost:
    """Estimate of the bytes that transcoders of one pair of hooks take.

    In training these are weights, gradients, Adam's moments, and the store's pairs.

    Args:
        configs: training configs of transcoders that learn from the same pairs.
        run: the run that trains them.
    """
    coders, weights, width = list(configs), 0, 0
    for config in coders:
        coder = TrainingSAE.from_dict(config.to_dict() | {"device": "meta"})
        weights += sum(each.numel() * each.element_size() for each in coder.parameters())
        width = coder.cfg.d_in + coder.cfg.d_out
    buffer = run.n_batches_in_buffer * run.context_size
    batch = run.store_batch_size_prompts * run.context_size
    # SAELens' store copies its buffer to shuffle it, and holds a batch four times at most.
    rows = 2 * buffer + 4 * batch + run.train_batch_size_tokens
    if any(config.normalize_activations == WHITENING for config in coders):
        rows += run.n_batches_for_norm_estimate * run.train_batch_size_tokens
    row = width * str_to_dtype(run.dtype).itemsize
    on_device = torch.device(str(run.act_store_device)) == torch.device(run.device)
    return Cost(_ARRAYS_OF_A_WEIGHT * weights + on_device * rows * row, weights)


def budget(run: TranscoderRunnerConfig) -> float:
    """Bytes for transcoders and their store: run.memory_gb, or most of the free memory."""
    widest = max(config.d_sae for config in run.saes.values())
    step = _ARRAYS_OF_A_STEP * 4 * run.train_batch_size_tokens * widest
    if run.memory_gb is not None:
        return run.memory_gb * 1e9 - step
    if torch.device(run.device).type == "cuda":
        free = torch.cuda.mem_get_info(run.device)[0]
    else:
        free = psutil.virtual_memory().available
    return _SHARE_OF_FREE * free - step


def passes(costs: Mapping[HookPair, Cost], budget: float) -> list[list[HookPair]]:
    """Divide pairs of hooks, in order, into groups that each fit in the budget, in bytes.

    A pair that does not fit is a group of its own.
    """
    groups: list[list[HookPair]] = [[]]
    used = 0
    for hooks, cost in costs.items():
        if groups[-1] and used + cost.training > budget:
            # The weights of trained coders stay in memory, because the run returns them.
            budget -= sum(costs[trained].trained for trained in groups[-1])
            groups.append([])
            used = 0
        groups[-1].append(hooks)
        used += cost.training
    return groups
