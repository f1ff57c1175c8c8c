"""`sae-binary compress`: hidden states as codes in files."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "compress",
    "hidden states as codes in files, and what that keeps and takes",
    room="compress",
    settings="CompressConfig",
    does="run_compress",
)
