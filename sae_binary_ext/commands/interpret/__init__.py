"""`sae-binary interpret`: how well latents can be told from their text."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "interpret",
    "how well latents can be told from the text they are active in",
    room="interpret",
    settings="InterpretConfig",
    does="run_interpret",
    result="interpretation.json",
    result_label="Scores",
    goes_on=True,
)
