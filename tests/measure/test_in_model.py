from typing import Any

import pytest
import torch
from sae_lens import SAE
from torch import Tensor, nn

from sae_binary_ext.measure import SplicedModel, read_pairs
from sae_binary_ext.measure.in_model import apply_coder
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.toy_model import VOCABULARY, WIDTH_OUT, ToyLanguageModel, losses

FIRST = 2


def test_an_autoencoder_replaces_what_it_reads():
    model, rows = ToyLanguageModel(), torch.randint(0, VOCABULARY, (20, 6))

    class Doubler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    coder: SAE[Any] = Doubler()  # type: ignore[assignment]
    found = SplicedModel(model, rows, "hook_in", first_position=FIRST).losses(coder)

    def loss(factor: float) -> float:
        hidden = model.embed(rows).detach()
        hidden[:, FIRST:] *= factor
        return losses(model.head(model.layer(hidden)), rows).mean().item()

    assert found.clean == pytest.approx(loss(1.0))
    assert found.ablated == pytest.approx(loss(0.0))
    assert found.spliced == pytest.approx(loss(2.0))
    expected = (loss(0.0) - loss(2.0)) / (loss(0.0) - loss(1.0))
    assert found.recovered == pytest.approx(expected, rel=1e-3)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_a_transcoder_replaces_the_output_and_reads_the_input():
    model, rows = ToyLanguageModel(), torch.randint(0, VOCABULARY, (20, 6))
    coder: Any = nn.Linear(model.layer.in_features, WIDTH_OUT)
    found = SplicedModel(model, rows, "hook_in", "hook_out", FIRST).losses(coder)
    hidden = model.embed(rows)
    output = model.layer(hidden)
    output[:, FIRST:] = coder(hidden)[:, FIRST:]
    assert found.spliced == pytest.approx(losses(model.head(output), rows).mean().item())
    output[:, FIRST:] = 0
    assert found.ablated == pytest.approx(losses(model.head(output), rows).mean().item())


def test_pairs_are_read_row_by_row():
    model, rows = ToyLanguageModel(), torch.randint(0, VOCABULARY, (20, 6))
    inputs, targets = read_pairs(model, rows, "hook_in", "hook_out", first_position=FIRST)
    assert torch.equal(inputs, model.embed(rows[:, FIRST:].flatten()))
    torch.testing.assert_close(targets, model.layer(inputs))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (("hook_nowhere", "hook_out"), "hook_name='hook_nowhere'.*hook_in"),
        (("hook_in", "hook_nowhere"), "hook_name_out='hook_nowhere'"),
        (("hook_in", "hook_idle"), "hook_name_out='hook_idle'.*does not pass through"),
    ],
)
def test_hooks_that_are_not_there_are_named(hooks: tuple[str, str], message: str):
    model, rows = ToyLanguageModel(), torch.randint(0, VOCABULARY, (2, 6))
    with pytest.raises(ValueError, match=message):
        SplicedModel(model, rows, *hooks).losses(nn.Identity())  # type: ignore[arg-type]
    message = message.replace("hook_name_out='hook_idle'", r"\['hook_idle'\]")
    with pytest.raises(ValueError, match=message):
        read_pairs(model, rows, *hooks)


@pytest.mark.parametrize("k", [1, 30])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_outputs_of_binary_coders_are_those_of_decode(k: int, normalize: Any):
    coder = BinarySAE(BinarySAEConfig(d_in=8, d_sae=40, k=k, normalize_activations=normalize))
    inputs = torch.randn(20, 8) + 1
    ((tokens, codes, output, _),) = apply_coder(coder, inputs, 10_000)
    assert torch.equal(tokens, torch.arange(20))
    assert torch.equal(codes, coder.encode(inputs))
    torch.testing.assert_close(output, coder(inputs).detach())
    assert not output.requires_grad
