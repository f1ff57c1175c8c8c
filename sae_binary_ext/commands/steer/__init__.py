"""`sae-binary steer`: latents set, cleared or flipped while the model generates."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.steer.config import SteerConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.steer.steer_run import run_steer

__all__ = ["COMMAND", "SteerConfig", "run_steer"]
COMMAND = MeasuringCommand(
    "steer",
    "text generated with latents set, cleared or flipped, or what this does to\n"
    "the next token, for random latents",
    goes_on=True,
    settings=SteerConfig,
)
__getattr__ = imported_late(__name__, "steer_run")
