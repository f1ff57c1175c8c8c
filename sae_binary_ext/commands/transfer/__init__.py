"""`sae-binary transfer`: applies coders of one layer to other layers."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.transfer.config import TransferConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.transfer.transfer_run import run_transfer

__all__ = ["COMMAND", "TransferConfig", "run_transfer"]
COMMAND = MeasuringCommand(
    "transfer", "error and codes of a coder at other layers than its own", settings=TransferConfig
)
__getattr__ = imported_late(__name__, "transfer_run")
