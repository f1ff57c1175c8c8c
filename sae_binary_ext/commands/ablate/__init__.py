"""`sae-binary ablate`: what is lost when latents are silenced or flipped."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "ablate",
    "what reconstruction and model lose when latents are silenced or flipped",
    room="ablate",
    settings="AblateConfig",
    does="run_ablate",
)
