"""`sae-binary refit`: the decoder of least error for a binary coder's codes."""

from sae_binary_ext.commands.command import FileCommand
from sae_binary_ext.commands.refit.refit_run import add_arguments, refit

COMMAND = FileCommand(
    "refit",
    "give a binary coder the decoder of least error for its codes",
    description="Gives a binary coder the decoder of least squared error for its codes, which stay "
    "as they are. Text is read with the coder's own model, at the place its files name.",
    add_arguments=add_arguments,
    does=refit,
)
