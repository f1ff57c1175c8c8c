"""Makes tables, plots and pages of measured figures."""

from sae_binary_ext.report.analysis import Analysis, analysis_of, write_analysis
from sae_binary_ext.report.comparison_files import comparison_table, write_comparison
from sae_binary_ext.report.tables import Column, Table, described, table_of

__all__ = [
    "Analysis",
    "Column",
    "Table",
    "analysis_of",
    "comparison_table",
    "described",
    "table_of",
    "write_analysis",
    "write_comparison",
]
