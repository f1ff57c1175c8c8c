"""`sae-binary plan`: what a training run takes, before it starts."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.plan.config import PlanConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.plan.plan_run import Plan, run_plan

__all__ = ["COMMAND", "Plan", "PlanConfig", "run_plan"]
COMMAND = MeasuringCommand(
    "plan",
    "memory, time and disk that a training run takes, and settings for both hosts",
    settings=PlanConfig,
    takes_coders=False,
    result="plan.json",
    result_label="Plan",
)
__getattr__ = imported_late(__name__, "plan_run")
