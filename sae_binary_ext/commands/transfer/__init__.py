"""`sae-binary transfer`: one layer's coders at the others."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "transfer",
    "what coders of one layer make of the others",
    room="transfer",
    settings="TransferConfig",
    does="run_transfer",
)
