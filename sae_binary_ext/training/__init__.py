"""Checks of a training run, and losses added to a host's own."""

from sae_binary_ext.training.attach import attach_to_loss, attach_to_output
from sae_binary_ext.training.collapse import CollapseWatch
from sae_binary_ext.training.finite import FiniteRows, FiniteWatch, check_finite, check_parameters
from sae_binary_ext.training.untouched import InitialParameters

__all__ = [
    "CollapseWatch",
    "FiniteRows",
    "FiniteWatch",
    "InitialParameters",
    "attach_to_loss",
    "attach_to_output",
    "check_finite",
    "check_parameters",
]
