"""`sae-binary multi-bit`: gives each latent several thresholds."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.multi_bit.config import MultiBitConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.multi_bit.multi_bit_run import (
        level_entropy,
        level_thresholds,
        run_multi_bit,
        with_levels,
    )

__all__ = [
    "COMMAND",
    "MultiBitConfig",
    "level_entropy",
    "level_thresholds",
    "run_multi_bit",
    "with_levels",
]
COMMAND = MeasuringCommand(
    "multi-bit", "several thresholds per latent: more bits, less error", settings=MultiBitConfig
)
__getattr__ = imported_late(__name__, "multi_bit_run")
