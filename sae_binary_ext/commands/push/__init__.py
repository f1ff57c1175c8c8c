"""`sae-binary push`: coders published on the Hub."""

from sae_binary_ext.commands.command import FileCommand
from sae_binary_ext.commands.push.push_run import add_arguments, push

COMMAND = FileCommand(
    "push",
    "publish coders on the Hub, with a model card",
    goes_on=True,
    description="Publishes a coder, or a folder of coders, each with a model card. Run again "
    "after an interruption, it goes on. Log in first: hf auth login, or HF_TOKEN.",
    add_arguments=add_arguments,
    does=push,
)
