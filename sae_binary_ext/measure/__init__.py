"""Measures many coders with one pass of text through a model: figures, intervals, samples."""

# This import comes first, because its error says what to install if SAELens is missing.
import sae_binary_ext.saelens  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sae_binary_ext.measure.candidates import Candidate, Site, common_model, load_candidates
from sae_binary_ext.measure.code_entropy import CodeEntropy, GatheredCodes
from sae_binary_ext.measure.comparison import Amount, ComparedCoder, Comparison, SplicedFigures
from sae_binary_ext.measure.delphi_encoders import HookpointEncoders, hookpoint_encoders
from sae_binary_ext.measure.documents import Estimate, read_documents
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.in_model import SplicedModel, read_pairs
from sae_binary_ext.measure.metrics import CoderMetrics, measure
from sae_binary_ext.measure.quantised_values import value_bits
from sae_binary_ext.measure.refit import Refitted, refit
from sae_binary_ext.measure.stock_export import Exported, export_stock
from sae_binary_ext.measure.text import Text, read_activations
from sae_binary_ext.saelens.refitting import refit_decoder
from sae_binary_ext.saelens.splice import SplicedLosses
from sae_binary_ext.training.least_squares import DecoderFit

__all__ = [
    "Amount",
    "Candidate",
    "CodeEntropy",
    "CoderFigures",
    "CoderMetrics",
    "ComparedCoder",
    "Comparison",
    "DecoderFit",
    "Estimate",
    "Exported",
    "GatheredCodes",
    "HookpointEncoders",
    "Refitted",
    "Site",
    "SplicedFigures",
    "SplicedLosses",
    "SplicedModel",
    "Text",
    "common_model",
    "export_stock",
    "hookpoint_encoders",
    "load_candidates",
    "measure",
    "read_activations",
    "read_documents",
    "read_pairs",
    "refit",
    "refit_decoder",
    "value_bits",
]
