"""`sae-binary gradients`: compares surrogate gradients with changes of the true loss."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.gradients.config import GradientsConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.gradients.gradients_run import run_gradients

__all__ = ["COMMAND", "GradientsConfig", "run_gradients"]
COMMAND = MeasuringCommand(
    "gradients",
    "the gradients of surrogates in training, beside the true loss",
    settings=GradientsConfig,
    takes_coders=False,
)
__getattr__ = imported_late(__name__, "gradients_run")
