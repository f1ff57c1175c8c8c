"""`sae-binary gradients`: compares gradients of surrogates with the true loss, over training."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_binary_ext.coding import binarise
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.commands.demo.coders import trainer_on
from sae_binary_ext.commands.gradients import gradients_page as page
from sae_binary_ext.commands.gradients.config import BATCH, GradientsConfig
from sae_binary_ext.measure.documents import estimate_of, resampled
from sae_binary_ext.measure.hidden_states import states_of_layers
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_model
from sae_binary_ext.saelens import BinaryTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE = 3e-3
# Sizes of steps of a latent's bias, in standard deviations of its pre-activation.
BUMPS = (0.03, 0.1, 0.3, 1.0)
# Sizes of steps against the encoder's gradient, by the share of the loss that they promise.
PROMISES = (0.01, 0.1)


def run_gradients(config: GradientsConfig) -> Analysis:
    """Train coders and measure their surrogate gradients; files go to config.output.

    ValueError if the model lacks the hook, or the text is too short.
    """
    return analyse_model(config, _measure, page.gradients_page)


def _measure(opened: OpenedModel, config: GradientsConfig) -> list[page.Probe]:
    hook = resolve_hook(opened.model, "hook", config.hook or "")
    (states,) = states_of_layers(opened, config, {0: hook}, config.tokens).values()
    held_out, states = states[: config.probe_tokens].float(), states[config.probe_tokens :]
    if len(states) < BATCH:
        raise ValueError(
            f"tokens={config.tokens}: the text has {len(states)} tokens beside those to measure "
            f"on, and a step of training takes {BATCH}. Give a longer text."
        )
    found: list[page.Probe] = []
    for surrogate in tqdm(config.surrogates or SURROGATES, "Surrogates", unit="coders"):
        found += _train_and_probe(surrogate, states, held_out, config)
    return found


class _ProbingTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer, which also calls `probe` after each step."""

    probe: Callable[[int, Any], None]

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        self.probe(self.n_training_steps + 1, self)
        return output


def _train_and_probe(
    surrogate: str, states: Tensor, held_out: Tensor, config: GradientsConfig
) -> list[page.Probe]:
    """Train a coder on states [states, width]; measure gradients on held_out [tokens, width]."""
    settings = BinaryTrainingSAEConfig(
        d_in=states.shape[1],
        d_sae=config.latents,
        k=config.k,
        selection=config.selection,
        surrogate=surrogate,
        surrogate_temperature=config.surrogate_temperature,
        normalize_activations="expected_average_only_in",
    )
    trainer = trainer_on(
        states,
        settings,
        BATCH,
        config.seed,
        _ProbingTrainer,
        total_training_samples=config.training_states // BATCH * BATCH,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
    )
    steps, found = set(config.probe_steps()), list[page.Probe]()

    def probe(step: int, trainer: Any) -> None:
        if step in steps:
            x = trainer.activation_scaler(held_out)
            figures = probe_gradients(trainer.sae, x, config.probed_latents, config.seed)
            found.append(page.Probe(surrogate, step, figures))

    trainer.probe = probe
    trainer.fit()
    return found


def probe_gradients(coder: Any, x: Tensor, probed: int, seed: int) -> page.GradientFigures:
    """Measure the surrogate gradient of a coder on x [tokens, d_in]; the coder does not change.

    The probed latents are drawn with `seed` from the latents that fire on these tokens.
    """
    with torch.enable_grad():
        codes, _ = coder.encode_with_hidden_pre(x)
        loss = (coder.decode(codes) - x).square().sum(1).mean()
        weight, bias = torch.autograd.grad(loss, [coder.W_enc, coder.b_enc])
    with torch.no_grad():
        fired = (codes != 0).any(0).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        latents = fired[torch.randperm(len(fired), generator=generator)[:probed].to(fired.device)]
        deviations = coder.codes_and_pre_activations(x, noise=False)[1].std(0)
        agreements = {
            bump: _agreement(bias[latents], loss_slopes(coder, x, latents, bump * deviations))
            for bump in BUMPS
        }
        variance = (x - x.mean(0)).square().sum(1).mean()
        return page.GradientFigures(
            (loss / variance).item(),
            (bias != 0).double().mean().item(),
            weight.norm().item(),
            bias.norm().item(),
            agreements,
            {share: _kept(coder, x, loss, weight, bias, share) for share in PROMISES},
        )


def loss_slopes(coder: Any, x: Tensor, latents: Tensor, bumps: Tensor) -> Tensor:
    """Slope of the loss along the bias of each probed latent, by finite differences.

    The derivative of the loss is 0 almost everywhere, so finite steps show what a bias changes:
    (L(b + bump) - L(b - bump)) / (2 bump), where L selects the codes anew. x: [tokens, d_in];
    latents: int64 [probed]; bumps: [d_sae], positive. Returns float64 [probed], in loss per unit of
    the bias.
    """
    codes, pre = coder.codes_and_pre_activations(x, noise=False)
    error = (coder.decode(codes) - x).double()
    rows = coder.W_dec.double()

    def change(latent: int, bump: Tensor) -> Tensor:
        bumped = pre.clone()
        bumped[:, latent] += bump
        difference = binarise(bumped, coder.log_threshold, coder.rule, False) - codes
        tokens = difference.any(1)
        before = error[tokens]
        after = before + difference[tokens].double() @ rows
        return (after.square().sum() - before.square().sum()) / len(x)

    slopes = [
        (change(latent, bumps[latent]) - change(latent, -bumps[latent])) / (2 * bumps[latent])
        for latent in latents.tolist()
    ]
    return torch.stack(slopes).double().cpu()


def _agreement(gradient: Tensor, slopes: Tensor) -> page.Agreement:
    drawn = resampled(len(slopes))
    one, other = gradient.double().cpu()[drawn], slopes[drawn]
    known = (one != 0) & (other != 0)
    alike = (one.sign() == other.sign()) & known
    return page.Agreement(
        (slopes != 0).double().mean().item(),
        estimate_of((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))),
        estimate_of(alike.sum(1) / known.sum(1)),
    )


def _kept(coder: Any, x: Tensor, loss: Tensor, weight: Tensor, bias: Tensor, share: float) -> float:
    """The actual fall of the loss over the promised fall; the step promises `share` of the loss."""
    size = share * loss / (weight.square().sum() + bias.square().sum())
    # Move the weights of a copy, so that the coder keeps its weights bit for bit.
    moved = copy.copy(coder)
    moved._parameters = dict(coder._parameters)
    moved._parameters["W_enc"] = torch.nn.Parameter(coder.W_enc - size * weight)
    moved._parameters["b_enc"] = torch.nn.Parameter(coder.b_enc - size * bias)
    after = (moved.decode(moved.encode(x)) - x).square().sum(1).mean()
    return ((loss - after) / (share * loss)).item()
