import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sae_binary_ext.saelens import BinaryTranscoderTrainingSAEConfig
from sae_binary_ext.saelens.pairs import HookPair, PairFactors, PairScaler
from sae_binary_ext.saelens.splice import Splice, SplicedLosses, TranscoderEvaluator
from tests.toy_model import VOCABULARY, WIDTH, WIDTH_OUT, ToyLanguageModel, losses

HOOKS = HookPair("hook_in", "hook_out")


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
    evaluator = TranscoderEvaluator(model, store, 20, 1, {}, hooks={"it": HOOKS})
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


@torch.no_grad()
def test_losses_of_a_bfloat16_model_are_averaged_in_float32():
    """The losses equal cross-entropies computed in float64 from the model's logits."""
    rows = torch.randint(0, VOCABULARY, (50, 16))
    model = ToyLanguageModel().bfloat16()
    logits, narrow = model(rows)
    expected = losses(logits.double(), rows)
    found = Splice(model, *HOOKS).clean(rows, rows != -1)
    assert narrow.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)

    config = BinaryTranscoderTrainingSAEConfig(d_in=WIDTH, d_out=WIDTH_OUT, d_sae=16, k=4)
    sae: Any = TrainingSAE.from_dict(config.to_dict())
    store: Any = SimpleNamespace(
        get_batch_tokens=lambda rows_wanted: rows,
        seqpos_slice=(0, None),
        exclude_special_tokens=None,
    )
    evaluator = TranscoderEvaluator(model, store, 20, 2, {}, hooks={"it": HOOKS})
    figures = evaluator({"it": sae}, iter(()), {"it": PairScaler(WIDTH)}, {})
    clean = figures["it/model_performance_preservation"]["ce_loss_without_sae"]
    assert clean == pytest.approx(expected.mean().item(), rel=1e-6)


def test_a_share_of_nothing_is_no_number():
    assert math.isnan(SplicedLosses(clean=2.0, ablated=2.0, spliced=2.5).recovered)


@pytest.mark.parametrize("batches", [0, -1])
def test_an_evaluation_of_no_batches_is_refused(batches: int):
    store: Any = SimpleNamespace()
    evaluator = TranscoderEvaluator(ToyLanguageModel(), store, 20, batches, {}, hooks={"it": HOOKS})
    with pytest.raises(ValueError, match=rf"n_eval_batches={batches}.*at least 1"):
        evaluator({}, iter(()), {}, {})
