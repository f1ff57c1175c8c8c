"""`sae-binary ablate`: silence or flip latents."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "ablate",
    "rise of error and loss when latents are silenced or flipped",
    room="ablate",
    settings="AblateConfig",
    does="run_ablate",
)
