import torch

from sae_binary_ext.evaluation.contexts import choose_latents, latent_contexts
from tests.evaluation.test_metrics import coder_with_known_codes


def test_chosen_latents_are_spread_over_the_rates_and_active_often_enough():
    rates = torch.tensor([0.0, 0.001, 0.02, 0.5, 0.04, 0.3, 0.01])
    assert choose_latents(rates, 3, tokens=1000) == [6, 4, 3]
    assert choose_latents(rates, 9, tokens=1000) == [6, 2, 4, 5, 3]
    assert choose_latents(rates, 3, tokens=5) == []


def test_contexts_mark_every_active_token_around_a_random_active_one():
    # Two rows of five tokens; latent 0 is active on tokens 1 and 3 of the second row.
    activations = torch.zeros(10, 3)
    activations[[6, 8], 0] = 1
    rows = [[f"a{i}" for i in range(5)], [f"b{i}" for i in range(5)]]
    rates = torch.tensor([0.2, 0, 0, 0])
    (latent,) = latent_contexts(
        coder_with_known_codes(), activations, rows, [0], rates, contexts=9, radius=2
    )
    assert (latent.latent, round(latent.rate, 6)) == (0, 0.2)
    windows = {tuple(context.tokens) for context in latent.contexts}
    b = [("b0", False), ("b1", True), ("b2", False), ("b3", True), ("b4", False)]
    assert windows == {tuple(b[0:4]), tuple(b[1:5])}
