"""Measuring coders and showing what was measured."""

from sae_binary_ext.evaluation.contexts import (
    Context,
    LatentContexts,
    choose_latents,
    latent_contexts,
)
from sae_binary_ext.evaluation.in_model import SplicedModel, read_pairs
from sae_binary_ext.evaluation.metrics import CoderMetrics, measure
from sae_binary_ext.evaluation.report import (
    CoderResult,
    terminal_table,
    write_metrics,
    write_report,
)
from sae_binary_ext.saelens.splice import SplicedLosses

__all__ = [
    "CoderMetrics",
    "CoderResult",
    "Context",
    "LatentContexts",
    "SplicedLosses",
    "SplicedModel",
    "choose_latents",
    "latent_contexts",
    "measure",
    "read_pairs",
    "terminal_table",
    "write_metrics",
    "write_report",
]
