import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sae_binary_ext.saelens import BinaryTranscoderTrainingSAEConfig
from sae_binary_ext.saelens.pairs import PairFactors, PairScaler
from sae_binary_ext.saelens.splice import Splice, TranscoderEvaluator
from tests.toy_model import VOCABULARY, WIDTH, WIDTH_OUT, ToyLanguageModel

HOOKS = ("hook_in", "hook_out")


@torch.no_grad()
def test_the_evaluator_scales_as_training_does_and_replaces_what_is_trained_on():
    model, rows = ToyLanguageModel(), torch.randint(0, VOCABULARY, (20, 8))
    config = BinaryTranscoderTrainingSAEConfig(
        d_in=WIDTH, d_out=WIDTH_OUT, d_sae=16, k=4, skip_connection=True
    )
    sae: Any = TrainingSAE.from_dict(config.to_dict())
    for parameter in sae.parameters():
        parameter.copy_(torch.randn_like(parameter))
    scaler = PairScaler(WIDTH)
    scaler.scaling_factor = PairFactors(3.0, 0.2)
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(scaler.scaling_factor)

    store: Any = SimpleNamespace(
        get_batch_tokens=lambda rows_wanted: rows[:rows_wanted],
        seqpos_slice=(2, None),
        exclude_special_tokens=torch.tensor([0]),
    )
    evaluator = TranscoderEvaluator(model, store, HOOKS, 20, 1, {})
    found = evaluator({"it": sae}, iter(()), {"it": scaler}, {})[
        "it/model_performance_preservation"
    ]

    where = rows != 0
    where[:, :2] = False
    splice = Splice(model, *HOOKS)
    expected = splice.replaced(rows, where, lambda x, _: folded(x)).mean().item()
    assert found["ce_loss_with_sae"] == pytest.approx(expected, rel=1e-5)
    assert found["ce_loss_with_ablation"] == pytest.approx(
        splice.ablated(rows, where).mean().item()
    )
    assert found["ce_loss_without_sae"] == pytest.approx(splice.clean(rows, where).mean().item())
