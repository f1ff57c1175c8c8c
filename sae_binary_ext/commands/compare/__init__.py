"""`sae-binary compare`: coders measured on the same tokens."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "compare",
    "measure coders of any format, binary or stock, on the same tokens",
    room="compare",
    settings="CompareConfig",
    does="run_compare",
    result="report.html",
    goes_on=True,
)
