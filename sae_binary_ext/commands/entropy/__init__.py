"""`sae-binary entropy`: bounds the entropy of hidden states by codes."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.entropy.config import EntropyConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.entropy.entropy_run import run_entropy

__all__ = ["COMMAND", "EntropyConfig", "run_entropy"]
COMMAND = MeasuringCommand(
    "entropy", "the information in hidden states, by the codes of coders", settings=EntropyConfig
)
__getattr__ = imported_late(__name__, "entropy_run")
