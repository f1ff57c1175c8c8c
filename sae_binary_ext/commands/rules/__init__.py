"""`sae-binary rules`: labels told by Boolean rules over latents, and latents that imply others."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.rules.config import RulesConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.rules.rules_run import run_rules

__all__ = ["COMMAND", "RulesConfig", "run_rules"]
COMMAND = MeasuringCommand(
    "rules",
    "labels of tokens and texts told by Boolean rules over latents, and latents that imply others",
    goes_on=True,
    settings=RulesConfig,
)
__getattr__ = imported_late(__name__, "rules_run")
