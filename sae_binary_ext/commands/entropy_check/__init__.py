"""`sae-binary entropy-check`: the entropy of codes on states of known entropy."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "entropy-check",
    "the entropy of codes on synthetic states whose entropy is known",
    room="entropy_check",
    settings="EntropyCheckConfig",
    does="run_entropy_check",
    takes_coders=False,
)
