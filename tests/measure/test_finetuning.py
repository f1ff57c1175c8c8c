"""Losses with coders spliced in together, and how coders train on them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.documents import OutlyingTokens, TextBatch
from sae_binary_ext.measure.finetuning import Finetuning, JointSplice
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.saelens import BinaryTranscoder, BinaryTranscoderConfig
from tests.toy_model import VOCABULARY, WIDTH, WIDTH_OUT, ToyLanguageModel

FIRST = 1
LENGTHS = (6, 4, 2, 6)
HOOKS = ("hook_in", "hook_out")


def binary_coder() -> BinaryTranscoder:
    coder = BinaryTranscoder(BinaryTranscoderConfig(d_in=WIDTH, d_out=WIDTH_OUT, d_sae=16, k=4))
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return coder


class WithoutGradient(BinaryTranscoder):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def without_gradient() -> BinaryTranscoder:
    return WithoutGradient(BinaryTranscoderConfig(d_in=WIDTH, d_out=WIDTH_OUT, d_sae=16, k=4))


def opened_with(*coders: Any, hooks: tuple[str, str] = HOOKS) -> OpenedModel:
    model, documents = ToyLanguageModel(), iter(())
    sites = [Site(f"{hooks[0]}{number}", hooks[1]) for number, _ in enumerate(coders)]
    candidates = [
        Candidate(f"coder{number}", Path(), coder, site)
        for number, (coder, site) in enumerate(zip(coders, sites, strict=True))
    ]
    tokenizer: Any = None
    return OpenedModel(
        candidates, dict.fromkeys(sites, hooks), model, "toy", tokenizer, "text",
        lambda: documents, OutlyingTokens(math.inf), 6, FIRST,
    )  # fmt: skip


def batch() -> TextBatch:
    return TextBatch(torch.randint(0, VOCABULARY, (4, 6)), torch.tensor(LENGTHS), [0, 0, 1, 2])


def test_losses_and_gradients_are_those_of_the_model_written_out():
    torch.manual_seed(0)
    coder = binary_coder()
    opened, text = opened_with(coder), batch()
    losses, read = JointSplice(opened).losses(text)
    model: Any = opened.model
    hidden = model.embed(text.tokens)
    clean = model.head(model.layer(hidden)).detach()
    output = model.layer(hidden).detach().clone()
    output[:, FIRST:] = coder(hidden[:, FIRST:].detach())
    logits = model.head(output)

    divergences: list[Tensor] = []
    entropies: list[Tensor] = []
    for row, length in enumerate(LENGTHS):
        one, two = (each[row, FIRST:length].log_softmax(-1) for each in (clean, logits))
        divergences.append((one.exp() * (one - two)).sum(-1))
        entropies.append(
            F.cross_entropy(two[:-1], text.tokens[row, FIRST + 1 : length], reduction="none")
        )
    means = {"divergence": torch.cat(divergences).mean(), "spliced": torch.cat(entropies).mean()}
    for name, expected in means.items():
        torch.testing.assert_close(losses.mean(name), expected)
        parameters = [coder.W_enc, coder.b_enc, coder.log_threshold, coder.W_dec, coder.b_dec]
        ours, theirs = (
            torch.autograd.grad(loss, parameters, retain_graph=True)
            for loss in (losses.mean(name), expected)
        )
        for one, two in zip(ours, theirs, strict=True):
            assert one.any()
            torch.testing.assert_close(one, two)
    assert losses.sums()[:, 3].tolist() == [length - FIRST for length in LENGTHS]
    assert losses.sums()[:, 4].sum().item() == pytest.approx(
        torch.cat(divergences).sum().item(), rel=1e-5
    )
    assert read.where.sum() == sum(LENGTHS) - len(LENGTHS)


def training(opened: OpenedModel, folder: Path, *parameters: str, **learners: str) -> Finetuning:
    return Finetuning(
        JointSplice(opened), "divergence", 0.02, parameters, learners, folder / "state.pt", "it"
    )


@pytest.mark.parametrize("parameters", [(), ("W_dec", "b_dec")])
def test_the_coder_learns_and_the_model_stays(parameters: tuple[str, ...], tmp_path: Path):
    torch.manual_seed(0)
    coder, text = binary_coder(), batch()
    opened = opened_with(coder)
    before = {name: each.clone() for name, each in opened.model.state_dict().items()}
    start = {name: each.detach().clone() for name, each in coder.named_parameters()}
    run = training(opened, tmp_path, *parameters)
    assert coder.rule.surrogate_latents == "near"
    run.run([text] * 60)
    assert run.steps[-1].divergence < 0.5 * run.steps[0].divergence
    assert run.steps[-1].clean == run.steps[0].clean
    for name, each in opened.model.state_dict().items():
        assert torch.equal(each, before[name])
    changed = {
        name for name, each in coder.named_parameters() if not torch.equal(each, start[name])
    }
    assert changed == set(parameters or start)


def test_a_coder_keeps_the_learners_of_its_file(tmp_path: Path):
    coder = binary_coder()
    training(opened_with(coder), tmp_path, coder0="all")
    assert coder.rule.surrogate_latents == "all"


def jumprelu() -> JumpReLUSAE:
    return JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH_OUT, d_sae=16))


@pytest.mark.parametrize(
    ("coders", "hooks", "parameters", "message"),
    [
        ([binary_coder, binary_coder], HOOKS, (), "coder0 and coder1: both are of hook_out"),
        ([binary_coder], HOOKS, ("W_gate",), r"parameters=\['W_gate'\]: the coders have .*W_enc"),
        ([without_gradient], HOOKS, (), "coders: no gradient reaches them"),
        (
            [jumprelu],
            ("hook_out", "hook_out"),
            ("W_dec", "threshold"),
            r"coder0: .*\['threshold'\]",
        ),
        ([jumprelu], HOOKS, (), r"coder0: takes 5 to 5 dimensions, and the model has 3 and 5"),
    ],
)
def test_what_cannot_train_is_refused(
    coders: list[Any],
    hooks: tuple[str, str],
    parameters: tuple[str, ...],
    message: str,
    tmp_path: Path,
):
    opened = opened_with(*(make() for make in coders), hooks=hooks)
    with pytest.raises(ValueError, match=message):
        training(opened, tmp_path, *parameters).run([batch()])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path):
    coder = binary_coder()
    coder.b_dec.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"lr: the loss is nan after 0 steps.*lower"):
        training(opened_with(coder), tmp_path).run([batch()])
