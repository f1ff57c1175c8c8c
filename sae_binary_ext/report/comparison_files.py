"""A comparison as a terminal table, metrics.json and metrics.csv."""

import csv
from pathlib import Path
from typing import Any

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report.columns import COLUMNS, NAME
from sae_binary_ext.report.plots import grouped
from sae_binary_ext.report.tables import Table, as_json, finite, table_of, write_figures

# Two latents count as the same if their firing has a larger correlation.
MATCHED = 0.7
# Version of metrics.json: its keys stay the same within a version.
SCHEMA_VERSION = 1


def site_tables(coders: list[ComparedCoder]) -> list[Table]:
    """One table for each site."""
    by_site = grouped(coders, lambda coder: str(coder.candidate.site))
    return [table_of(site, [NAME, *COLUMNS], own) for site, own in by_site.items()]


def comparison_table(coders: list[ComparedCoder]) -> str:
    """The tables for the terminal, without intervals: those stand in the files."""
    return "\n\n".join(table.without_intervals() for table in site_tables(coders))


def write_comparison(coders: list[ComparedCoder], run: dict[str, Any], folder: Path) -> None:
    """Write metrics.json and metrics.csv, every figure unrounded (docs/compare.md has the keys).

    Args:
        coders: with their figures.
        run: the comparison's settings.
        folder: where the files go.
    """
    meanings = {column.key: column.meaning for column in COLUMNS}
    entries = [
        _described(coder)
        | {"settings": _settings(coder)}
        | _figures(coder)
        | {"matches": _matches(coder)}
        for coder in coders
    ]
    path = folder / "metrics.json"
    write_figures(path, SCHEMA_VERSION, run, "documents", meanings=meanings, coders=entries)
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = [_described(coder) | _flat(_figures(coder)) for coder in coders]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _described(coder: ComparedCoder) -> dict[str, Any]:
    candidate = coder.candidate
    return {
        "name": candidate.name,
        "folder": str(candidate.folder),
        "architecture": candidate.coder.cfg.architecture(),
        "hook_name": candidate.site.hook_name,
        "hook_name_out": candidate.site.hook_name_out,
        "binary": not coder.figures.stores_values,
        "tokens": coder.figures.tokens,
        "predictions": coder.losses.predictions,
    }


def _settings(coder: ComparedCoder) -> dict[str, Any]:
    config = coder.candidate.coder.cfg.to_dict()
    return {name: value for name, value in config.items() if name not in ("metadata", "device")}


def _figures(coder: ComparedCoder) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for column in COLUMNS:
        value = column.of(coder)
        if isinstance(value, Estimate):
            figure = as_json(value)
            figures[column.key] = figure | (
                {"interval": None} if None in figure["interval"] else {}
            )
        else:
            figures[column.key] = {"value": finite(value)}
    return figures


def _matches(coder: ComparedCoder) -> dict[str, Any]:
    """How well the latents of each other coder at the site match the sampled latents."""
    found: dict[str, Any] = {}
    for name, matches in coder.matches.items():
        known = matches.correlations[matches.correlations.isfinite()]
        found[name] = {
            "latents": len(known),
            "median_correlation": finite(known.median().item()) if len(known) else None,
            "above_0.7": int((known > MATCHED).sum()),
        }
    return found


def _flat(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, figure in figures.items():
        flat[key] = figure["value"]
        if "interval" in figure:
            low, high = figure["interval"] or ("", "")
            flat |= {f"{key}_low": low, f"{key}_high": high}
    return flat
