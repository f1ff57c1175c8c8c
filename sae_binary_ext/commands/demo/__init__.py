"""`sae-binary demo`: trains coders on SmolLM2 and compares them."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.demo.config import DemoConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.demo.demo_run import run_demo

__all__ = ["COMMAND", "DemoConfig", "run_demo"]
COMMAND = MeasuringCommand(
    "demo",
    "train binary and stock coders on SmolLM2 and compare them",
    settings=DemoConfig,
    takes_coders=False,
    result="report.html",
)
__getattr__ = imported_late(__name__, "demo_run")
