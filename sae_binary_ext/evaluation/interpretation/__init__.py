"""How well latents can be told from the text they are active in."""

from sae_binary_ext.evaluation.interpretation.config import InterpretConfig
from sae_binary_ext.evaluation.interpretation.run import run_interpret
from sae_binary_ext.evaluation.interpretation.scores import CoderScores, LatentScore

__all__ = ["CoderScores", "InterpretConfig", "LatentScore", "run_interpret"]
