"""A comparison as a terminal table, metrics.json and metrics.csv."""

import csv
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import CONFIDENCE, REPLICATES, Estimate
from sae_binary_ext.report.columns import COLUMNS, TABLE, shown

# Latents of a larger correlation count as the same.
MATCHED = 0.7
# Of metrics.json; a reader may rely on the keys of its version.
SCHEMA_VERSION = 1
PACKAGES = (
    "sae_binary_ext",
    "torch",
    "sae-lens",
    "eai-sparsify",
    "transformer-lens",
    "transformers",
    "eai-delphi",
)


def comparison_table(coders: list[ComparedCoder]) -> str:
    """One table a site, in columns of even width; intervals stand in the files."""
    tables: list[str] = []
    for site in dict.fromkeys(coder.candidate.site for coder in coders):
        rows = [("coder", *(column.label for column in TABLE))]
        for coder in coders:
            if coder.candidate.site == site:
                cells = (shown(column, coder).partition(" [")[0] for column in TABLE)
                rows.append((coder.candidate.name, *cells))
        tables.append(f"{site}\n\n{aligned(rows)}")
    return "\n\n".join(tables)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells, the first of them the header, in columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        first, *rest = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_comparison(coders: list[ComparedCoder], run: dict[str, Any], folder: Path) -> None:
    """metrics.json and metrics.csv, every figure unrounded (docs/compare.md has the keys).

    Args:
        coders: what was measured.
        run: the comparison's settings.
        folder: where the files go.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "versions": versions(),
        "intervals": {"confidence": CONFIDENCE, "replicates": REPLICATES, "of": "documents"},
        "meanings": {column.key: column.meaning for column in COLUMNS},
        "coders": [
            _described(coder)
            | {"settings": _settings(coder)}
            | _figures(coder)
            | {"matches": _matches(coder)}
            for coder in coders
        ],
    }
    (folder / "metrics.json").write_text(json.dumps(document, indent=1, allow_nan=False))
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


def _figures(coder: ComparedCoder) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for column in COLUMNS:
        value = column.value(coder)
        if isinstance(value, Estimate):
            ends = [finite(value.low), finite(value.high)]
            interval = None if None in ends else ends
            figures[column.key] = {"value": finite(value.value), "interval": interval}
        else:
            figures[column.key] = {"value": finite(value)}
    return figures


def _matches(coder: ComparedCoder) -> dict[str, Any]:
    """Of each other coder at the site, how well the sampled latents are matched by one of its."""
    found: dict[str, Any] = {}
    for name, matches in coder.matches.items():
        correlations = matches.correlations[matches.correlations.isfinite()]
        found[name] = {
            "latents": len(correlations),
            "median_correlation": finite(correlations.median().item())
            if len(correlations)
            else None,
            "above_0.7": int((correlations > MATCHED).sum()),
        }
    return found


def finite(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, figure in figures.items():
        flat[key] = figure["value"]
        if "interval" in figure:
            low, high = figure["interval"] or ("", "")
            flat |= {f"{key}_low": low, f"{key}_high": high}
    return flat


def versions() -> dict[str, str]:
    """Of those of PACKAGES that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a host that is not installed
    return found
