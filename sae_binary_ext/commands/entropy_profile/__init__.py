"""`sae-binary entropy-profile`: the same along layers or positions."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "entropy-profile",
    "the same along a model's layers, or along positions",
    room="entropy_profile",
    settings="EntropyProfileConfig",
    does="run_entropy_profile",
    takes_coders=False,
)
