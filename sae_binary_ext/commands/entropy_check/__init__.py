"""`sae-binary entropy-check`: measures the entropy of codes on states of known entropy."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.entropy_check.config import EntropyCheckConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.entropy_check.entropy_check_run import run_entropy_check

__all__ = ["COMMAND", "EntropyCheckConfig", "run_entropy_check"]
COMMAND = MeasuringCommand(
    "entropy-check",
    "the entropy of codes on synthetic states whose entropy is known",
    settings=EntropyCheckConfig,
    takes_coders=False,
)
__getattr__ = imported_late(__name__, "entropy_check_run")
