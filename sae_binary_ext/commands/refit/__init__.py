"""`sae-binary refit`: the decoder of least error for a binary coder's codes."""

from sae_binary_ext.commands.command import FileCommand
from sae_binary_ext.commands.refit.refit_run import add_arguments, refit

COMMAND = FileCommand(
    "refit",
    "give a binary coder the decoder of least error for its codes",
    description="Replaces a binary coder's decoder by the one of least squared error. The codes "
    "stay the same. Text is read with the coder's model, at the hook its files name.",
    add_arguments=add_arguments,
    does=refit,
)
