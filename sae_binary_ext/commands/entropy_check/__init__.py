"""`sae-binary entropy-check`: the same of states of known entropy."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "entropy-check",
    "the same of states whose entropy is known",
    room="entropy_check",
    settings="EntropyCheckConfig",
    does="run_entropy_check",
    takes_coders=False,
)
