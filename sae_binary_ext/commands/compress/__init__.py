"""`sae-binary compress`: hidden states as codes in files."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "compress",
    "hidden states as codes in files: size and error",
    room="compress",
    settings="CompressConfig",
    does="run_compress",
)
