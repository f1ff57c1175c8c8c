"""`sae-binary transfer`: one layer's coders at the others."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "transfer",
    "error and codes of a coder at other layers than its own",
    room="transfer",
    settings="TransferConfig",
    does="run_transfer",
)
