"""`sae-binary interpret`: scores how well the text of a latent's firings predicts the latent."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.interpret.config import InterpretConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.interpret.interpret_run import run_interpret
    from sae_binary_ext.commands.interpret.interpret_scores import CoderScores, LatentScore

__all__ = ["COMMAND", "CoderScores", "InterpretConfig", "LatentScore", "run_interpret"]
COMMAND = MeasuringCommand(
    "interpret",
    "how well latents can be told from the text they are active in",
    settings=InterpretConfig,
    result="interpretation.json",
    result_label="Scores",
    goes_on=True,
)
__getattr__ = imported_late(__name__, "interpret_run", "interpret_scores")
