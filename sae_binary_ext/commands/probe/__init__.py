"""`sae-binary probe`: sparse probing with the tasks of sae-probes."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.probe.config import ProbeConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.probe.probe_run import run_probe

__all__ = ["COMMAND", "ProbeConfig", "run_probe"]
COMMAND = MeasuringCommand(
    "probe",
    "sparse probing: labels of texts told from a few latents, on tasks of sae-probes",
    goes_on=True,
    settings=ProbeConfig,
)
__getattr__ = imported_late(__name__, "probe_run")
