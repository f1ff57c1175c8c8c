"""Measuring coders and showing what was measured."""

# First: it says what to install where SAELens is missing.
import sae_binary_ext.saelens  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sae_binary_ext.evaluation.bootstrap import Estimate
from sae_binary_ext.evaluation.candidates import Candidate, Site, common_model, load_candidates
from sae_binary_ext.evaluation.compare import Amount, ComparedCoder, Comparison
from sae_binary_ext.evaluation.comparison_files import comparison_table, write_comparison
from sae_binary_ext.evaluation.documents import read_documents
from sae_binary_ext.evaluation.encoders import HookpointEncoders, hookpoint_encoders
from sae_binary_ext.evaluation.in_model import SplicedModel, read_pairs
from sae_binary_ext.evaluation.metrics import CoderMetrics, measure
from sae_binary_ext.evaluation.run import CompareConfig, run_compare
from sae_binary_ext.evaluation.running import CoderFigures
from sae_binary_ext.evaluation.splicing import SplicedFigures
from sae_binary_ext.saelens.splice import SplicedLosses

__all__ = [
    "Amount",
    "Candidate",
    "CoderFigures",
    "CoderMetrics",
    "CompareConfig",
    "ComparedCoder",
    "Comparison",
    "Estimate",
    "HookpointEncoders",
    "Site",
    "SplicedFigures",
    "SplicedLosses",
    "SplicedModel",
    "common_model",
    "comparison_table",
    "hookpoint_encoders",
    "load_candidates",
    "measure",
    "read_documents",
    "read_pairs",
    "run_compare",
    "write_comparison",
]
