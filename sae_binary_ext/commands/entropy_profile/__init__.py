"""`sae-binary entropy-profile`: the entropy of hidden states along layers or positions."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.entropy_profile.entropy_profile_run import run_entropy_profile

__all__ = ["COMMAND", "EntropyProfileConfig", "run_entropy_profile"]
COMMAND = MeasuringCommand(
    "entropy-profile",
    "the entropy of hidden states along layers or positions",
    settings=EntropyProfileConfig,
    takes_coders=False,
)
__getattr__ = imported_late(__name__, "entropy_profile_run")
