"""`sae-binary comsem`: scores what a latent's tokens have in common (arXiv 2509.20997)."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.comsem.config import ComsemConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.comsem.comsem_run import run_comsem
    from sae_binary_ext.commands.comsem.judging import ComsemScore

__all__ = ["COMMAND", "ComsemConfig", "ComsemScore", "run_comsem"]
COMMAND = MeasuringCommand(
    "comsem", "what the tokens of each latent have in common (ComSem)", settings=ComsemConfig
)
__getattr__ = imported_late(__name__, "comsem_run", "judging")
