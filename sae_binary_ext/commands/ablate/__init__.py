"""`sae-binary ablate`: measures the harm of silencing or flipping latents."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.commands.command import MeasuringCommand, imported_late

if TYPE_CHECKING:
    from sae_binary_ext.commands.ablate.ablate_run import run_ablate

__all__ = ["COMMAND", "AblateConfig", "run_ablate"]
COMMAND = MeasuringCommand(
    "ablate", "rise of error and loss when latents are silenced or flipped", settings=AblateConfig
)
__getattr__ = imported_late(__name__, "ablate_run")
