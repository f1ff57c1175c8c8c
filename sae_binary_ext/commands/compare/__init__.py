"""`sae-binary compare`: measures coders on the same tokens."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.compare.config import CompareConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.compare.compare_run import run_compare

__all__ = ["COMMAND", "CompareConfig", "run_compare"]
COMMAND = MeasuringCommand(
    "compare",
    "measure coders of any format, binary or stock, on the same tokens",
    settings=CompareConfig,
    result="report.html",
    goes_on=True,
)
__getattr__ = imported_late(__name__, "compare_run")
