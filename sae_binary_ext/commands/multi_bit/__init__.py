"""`sae-binary multi-bit`: several thresholds a latent."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "multi-bit",
    "give each latent several thresholds: more bits, less error",
    room="multi_bit",
    settings="MultiBitConfig",
    does="run_multi_bit",
)
