"""`sae-binary convert`: coders in another format."""

from sae_binary_ext.commands.command import FileCommand
from sae_binary_ext.commands.convert.convert_run import add_arguments, convert

COMMAND = FileCommand(
    "convert",
    "write coders down in another format (saelens, sparsify, cho2025, quirke2025)",
    description="Writes coders down in another format.",
    add_arguments=add_arguments,
    does=convert,
)
