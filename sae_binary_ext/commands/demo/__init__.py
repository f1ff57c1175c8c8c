"""`sae-binary demo`: coders trained on SmolLM2 and compared."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "demo",
    "train binary and stock coders on SmolLM2 and compare them",
    room="demo",
    settings="DemoConfig",
    does="run_demo",
    takes_coders=False,
    result="report.html",
)
