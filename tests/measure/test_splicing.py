from typing import Any

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.comparison import RunningLosses, SplicedBatch
from sae_binary_ext.measure.documents import TextBatch, document_weights
from sae_binary_ext.saelens.splice import Splice
from tests.toy_model import VOCABULARY, WIDTH_OUT, ToyLanguageModel

FIRST = 1
LENGTHS = (6, 4, 2, 6)


def plain_losses(model: ToyLanguageModel, tokens: Tensor, change: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities and losses of a single row, at the positions that are replaced."""
    output = model.layer(model.embed(tokens)).detach()
    output[FIRST:] = change(model.embed(tokens)[FIRST:], output[FIRST:])
    scores = torch.log_softmax(model.head(output).double(), dim=-1)[FIRST:]
    return scores, -scores[:-1].gather(-1, tokens[FIRST + 1 :, None]).squeeze(-1)


def test_losses_are_those_of_each_row_alone():
    torch.manual_seed(0)
    model = ToyLanguageModel()
    coder = nn.Linear(model.layer.in_features, WIDTH_OUT)
    tokens = torch.randint(0, VOCABULARY, (4, 6))
    text = TextBatch(tokens, torch.tensor(LENGTHS), [0, 0, 1, 2])
    mean = torch.randn(WIDTH_OUT, dtype=torch.float64)
    splice = Splice(model, "hook_in", "hook_out")
    clean = splice.outputs(tokens, text.positions(0), lambda _, target: target)
    running = RunningLosses()
    rows = SplicedBatch(splice, text, clean, FIRST, mean).losses(lambda x, _: coder(x))
    running.add(rows, document_weights(text.documents))
    found = running.figures()

    changes = {
        "clean": lambda x, y: y,
        "zero_ablated": lambda x, y: torch.zeros_like(y),
        "mean_ablated": lambda x, y: mean.float(),
        "spliced": lambda x, y: coder(x),
    }
    losses: dict[str, list[Tensor]] = {name: [] for name in [*changes, "divergence"]}
    with torch.no_grad():
        for row, length in zip(tokens, LENGTHS, strict=True):
            scores = {}
            for name, change in changes.items():
                scores[name], loss = plain_losses(model, row[:length], change)
                losses[name].append(loss)
            difference = scores["clean"] - scores["spliced"]
            losses["divergence"].append((scores["clean"].exp() * difference).sum(-1))
    means = {name: torch.cat(values).mean().item() for name, values in losses.items()}
    assert found.predictions == sum(LENGTHS) - 2 * len(LENGTHS)
    for name, value in means.items():
        torch.testing.assert_close(getattr(found, name).value, value, rtol=1e-5, atol=1e-6)
    for name, ablated in (("zero", "zero_ablated"), ("mean", "mean_ablated")):
        expected = (means[ablated] - means["spliced"]) / (means[ablated] - means["clean"])
        ours = getattr(found, f"recovered_of_{name}").value
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
