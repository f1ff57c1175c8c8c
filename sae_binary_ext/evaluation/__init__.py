"""Measuring coders and showing what was measured."""

from sae_binary_ext.evaluation.contexts import (
    Context,
    LatentContexts,
    choose_latents,
    latent_contexts,
)
from sae_binary_ext.evaluation.metrics import (
    CoderMetrics,
    LayerInputSplice,
    SplicedLosses,
    measure,
)
from sae_binary_ext.evaluation.report import (
    CoderResult,
    terminal_table,
    write_metrics,
    write_report,
)

__all__ = [
    "CoderMetrics",
    "CoderResult",
    "Context",
    "LatentContexts",
    "LayerInputSplice",
    "SplicedLosses",
    "choose_latents",
    "latent_contexts",
    "measure",
    "terminal_table",
    "write_metrics",
    "write_report",
]
