"""`sae-binary entropy`: the information in hidden states, by codes."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "entropy",
    "the information in hidden states, by the codes of coders",
    room="entropy",
    settings="EntropyConfig",
    does="run_entropy",
)
