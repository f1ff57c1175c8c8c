"""`sae-binary finetune`: trains coders together on what the model predicts with them."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.finetune.finetune_run import run_finetune

__all__ = ["COMMAND", "FinetuneConfig", "run_finetune"]
COMMAND = MeasuringCommand(
    "finetune",
    "train coders of several hooks together, on the model's predictions",
    goes_on=True,
    settings=FinetuneConfig,
    coders_help=(
        "coders to train: a coder's folder, a folder of such folders, or a Hub id of either. All "
        "must be of one model, and each of a hook of its own"
    ),
)
__getattr__ = imported_late(__name__, "finetune_run")
