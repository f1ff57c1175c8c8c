"""How many of a graph's strongest edges tell what clearing their source does to their target.

    python -m benchmarks.circuits CODERS [CODERS ...] "prompt"

Each source latent is cleared alone: with everything else held (attention, norms, the other MLPs),
and with attention patterns held while norms and MLPs respond (running). An edge is right if the
target's pre-activation falls by the edge within a tenth (held), or by half to twice the edge
(running).
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import torch
from torch import Tensor

from sae_binary_ext.commands.circuit.circuit_run import open_model, tokens_of, trace

EDGES = 200


def share_of_right_edges(source: str, prompt: str, output: Path) -> dict[str, float]:
    """Shares of the strongest edges between latents that are right, by what is held."""
    options = ArgumentParser().parse_args([])
    vars(options).update(
        source=source, prompt=prompt, output=output, model=None, backend=None, device="cpu",
        max_latents=1000, max_targets=5, batch_size=64,
    )  # fmt: skip
    model = open_model(options, "./data/none")
    tokens = torch.tensor(tokens_of(model.tokenizer, prompt))
    graph = trace(model, options)
    latents = graph.active_features[graph.selected_features]
    edges = graph.adjacency_matrix[: len(latents), : len(latents)]
    strongest = edges.abs().flatten().topk(EDGES).indices
    targets, sources = strongest // len(latents), strongest % len(latents)
    before = pre_activations(model, tokens, [], held=True)
    right = {"held": 0, "running": 0}
    for one in sources.unique().tolist():
        own = targets[sources == one]
        told = edges[own, one]
        for what in right:
            cleared = [(*latents[one].tolist(), 0.0)]
            after = pre_activations(model, tokens, cleared, held=what == "held")
            ratio = (before - after)[latents[own].unbind(1)] / told
            least, most = (0.9, 1.1) if what == "held" else (0.5, 2.0)
            right[what] += int(((ratio >= least) & (ratio <= most)).sum())
    return {what: count / EDGES for what, count in right.items()}


def pre_activations(
    model, tokens: Tensor, cleared: list[tuple[int, int, int, float]], held: bool
) -> Tensor:
    """Pre-activations [layers, tokens, latents] with latents (layer, position, latent) cleared."""
    if not cleared:
        return model.get_activations(tokens, apply_activation_function=False)[1]
    return model.feature_intervention(
        tokens,
        cleared,
        constrained_layers=range(model.cfg.n_layers) if held else None,
        apply_activation_function=False,
    )[1]


if __name__ == "__main__":
    *folders, text = sys.argv[1:]
    for folder in folders:
        shares = share_of_right_edges(folder, text, Path("runs/circuit"))
        print(folder, *(f"{what} {share:.1%}" for what, share in shares.items()), flush=True)
