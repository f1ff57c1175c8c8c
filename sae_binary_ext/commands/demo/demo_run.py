"""Runs the demo: computes activations, trains coders and compares them."""

import json
from itertools import accumulate
from pathlib import Path

import torch

# This import comes first, because its error says what to install if SAELens is missing.
import sae_binary_ext.saelens  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.checkpoints.sources import METRICS_FILE
from sae_binary_ext.commands import CompareConfig, run_compare
from sae_binary_ext.commands.demo.activations import load_or_compute
from sae_binary_ext.commands.demo.coders import plan_coders, train_coder
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.report.plots import curves
from sae_binary_ext.report.tables import aligned

CURVE_POINTS = 200


def run_demo(config: DemoConfig) -> str:
    """Train and compare the demo's coders; return tables as text. Files go to config.output."""
    config.output.mkdir(parents=True, exist_ok=True)
    activations = load_or_compute(config, export_smollm2(config.output / "model"))
    plans = plan_coders(config, activations.shape[-1])
    trained = [train_coder(plan, config, activations) for plan in plans]
    # Plot the mean of every few steps, so that noisy lines do not hide each other.
    points: dict[str, list[tuple[int, float]]] = {}
    for folder, _, fvu_by_step in trained:
        stretches = torch.tensor(fvu_by_step).chunk(CURVE_POINTS)
        ends = accumulate(map(len, stretches))
        points[folder.name] = [
            (end, stretch.mean().item()) for end, stretch in zip(ends, stretches, strict=True)
        ]
    plot = curves(points, "training step", "FVU of the training batch", mode="lines")
    # Measure the saved files, because these are what a user gets.
    table = run_compare(
        [str(training.folder) for training in trained],
        CompareConfig(
            output=config.output,
            tokens=config.held_out_tokens,
            spliced_tokens=config.spliced_tokens,
            context_size=config.context_size,
            first_position=FIRST_POSITION,
        ),
        {"Training": plot.update_yaxes(type="log")},
    )
    # Write each coder's figures to its folder, because `sae-binary push` reads them there.
    document = json.loads((config.output / METRICS_FILE).read_text())
    for coder in document["coders"]:
        own = json.dumps(document | {"coders": [coder]}, indent=1)
        (Path(coder["folder"]) / METRICS_FILE).write_text(own)
    times = [
        (training.folder.name, f"{plan.lr:g}", f"{training.seconds:.0f}")
        for plan, training in zip(plans, trained, strict=True)
    ]
    return f"{table}\n\n{aligned([('coder', 'learning rate', 'training, s'), *times])}"
