"""`sae-binary entropy-profile`: the entropy of hidden states along layers or positions."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "entropy-profile",
    "the entropy of hidden states along layers or positions",
    room="entropy_profile",
    settings="EntropyProfileConfig",
    does="run_entropy_profile",
    takes_coders=False,
)
