"""The demo from start to end: activations, training, comparison."""

import json
from pathlib import Path

import plotly.graph_objects as go
import torch

# First: it says what to install where SAELens is missing.
import sae_binary_ext.saelens  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.commands import CompareConfig, run_compare
from sae_binary_ext.commands.demo.activations import load_or_compute
from sae_binary_ext.commands.demo.coders import CoderPlan, Trained, plan_coders, train_coder
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.report.tables import aligned

CURVE_POINTS = 200


def run_demo(config: DemoConfig) -> str:
    """Train and compare the demo's coders; files go to config.output.

    Returns:
        The comparison and the training times as tables for the terminal.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    activations = load_or_compute(config, export_smollm2(config.output / "model"))
    plans = plan_coders(config, activations.shape[-1])
    trained = [train_coder(plan, config, activations) for plan in plans]
    # The saved files and not the coders in memory: it is the files a user gets.
    table = run_compare(
        [str(training.folder) for training in trained],
        CompareConfig(
            output=config.output,
            tokens=config.held_out_tokens,
            spliced_tokens=config.spliced_tokens,
            context_size=config.context_size,
            first_position=FIRST_POSITION,
        ),
        {"Training": _curves(trained)},
    )
    _write_beside_coders(config.output / "metrics.json")
    return f"{table}\n\n{_training_table(plans, trained)}"


def _write_beside_coders(comparison: Path) -> None:
    """Each coder's own figures in its folder, where `sae-binary push` looks for them."""
    document = json.loads(comparison.read_text())
    for coder in document["coders"]:
        own = document | {"coders": [coder]}
        (Path(coder["folder"]) / comparison.name).write_text(json.dumps(own, indent=1))


def _training_table(plans: list[CoderPlan], trained: list[Trained]) -> str:
    rows = [
        (training.folder.name, f"{plan.lr:g}", f"{training.seconds:.0f}")
        for plan, training in zip(plans, trained, strict=True)
    ]
    return aligned([("coder", "learning rate", "training, s"), *rows])


def _curves(trained: list[Trained]) -> go.Figure:
    figure = go.Figure()
    for training in trained:
        # Means of equal stretches: a point a step would make the lines hide one another.
        stretches = torch.tensor(training.fvu_by_step).chunk(CURVE_POINTS)
        ends = torch.tensor([len(stretch) for stretch in stretches]).cumsum(0)
        figure.add_scatter(
            x=ends.tolist(),
            y=[stretch.mean().item() for stretch in stretches],
            name=training.folder.name,
            mode="lines",
        )
    figure.update_xaxes(title="training step")
    figure.update_yaxes(type="log", title="FVU of the training batch")
    return figure
