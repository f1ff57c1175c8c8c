"""`sae-binary inspect`: what a folder or a repository of coders holds."""

from sae_binary_ext.commands.command import FileCommand, add_source
from sae_binary_ext.commands.inspect.inspect_run import inspect

COMMAND = FileCommand(
    "inspect",
    "what a folder or a Hub repository of coders holds",
    description="Says what coders are, and checks their files.",
    add_arguments=add_source,
    does=inspect,
)
