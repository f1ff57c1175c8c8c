"""Tables, plots and pages of what was measured."""

from sae_binary_ext.report.analysis import Analysis, Column, Table, write_analysis
from sae_binary_ext.report.comparison_files import comparison_table, write_comparison

__all__ = [
    "Analysis",
    "Column",
    "Table",
    "comparison_table",
    "write_analysis",
    "write_comparison",
]
