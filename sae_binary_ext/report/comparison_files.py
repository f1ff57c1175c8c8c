"""Shows a comparison as a terminal table, and writes metrics.json and metrics.csv.

columns.toml has a sentence that explains each column.
"""

import csv
import tomllib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.samples import STRATA
from sae_binary_ext.report.plots import grouped
from sae_binary_ext.report.tables import Column, Table, as_json, table_of, write_figures

# Firing rates above which latents count as dense and as ultra-high.
DENSE, ULTRA = 0.1, 0.5
# Two decoder rows count as similar above this cosine. Two latents count as firing together above
# this correlation.
SIMILAR_COSINE, DUPLICATE_CORRELATION = 0.9, 0.9
# Latents of two coders count as the same if their firing correlates above this value.
MATCHED = 0.7
# Version of metrics.json. Keys stay the same within a version.
SCHEMA_VERSION = 1
MEANINGS = tomllib.loads(Path(__file__).with_name("columns.toml").read_text(encoding="utf-8"))


def _column(
    label: str, key: str, value: Callable[[ComparedCoder], Any], form: str = ""
) -> Column[ComparedCoder]:
    return Column(label, MEANINGS[label or key], form, value, key)


def _explained(coder: ComparedCoder) -> Estimate:
    fvu = coder.figures.fvu
    return Estimate(1 - fvu.value, 1 - fvu.high, 1 - fvu.low)


def _mdl_bits(coder: ComparedCoder) -> Estimate:
    entropy, of_values = coder.figures.entropy_bits, coder.value_bits
    return Estimate(*(bits + of_values for bits in astuple(entropy)))


def _rate_quantile(share: float) -> Column[ComparedCoder]:
    def value(coder: ComparedCoder) -> float:
        rates = coder.figures.rates
        alive = rates[rates > 0]
        return alive.quantile(share).item() if len(alive) else float("nan")

    meaning = f"Firing rate below which {share:.0%} of the latents lie, dead latents left out."
    return Column("", meaning, ".2e", value, f"rate_quantile_{round(share * 100)}")


def _predictable(stratum: str) -> Column[ComparedCoder]:
    firings = "its firings" if stratum == "all" else f"the third of its firings of {stratum} value"
    return Column(
        "predictable" if stratum == "all" else "",
        f"How well the token and its neighbours tell {firings} from silence, by counts from other "
        "documents: area under the ROC curve (chance 0.5). Median over the sampled latents, "
        "interval over latents.",
        ".2f",
        lambda coder: coder.predictability.estimate(stratum),
        f"predictable_{stratum}",
    )


def _similar(coder: ComparedCoder) -> Tensor:
    return coder.figures.neighbour_cosines > SIMILAR_COSINE


def _duplicate(coder: ComparedCoder) -> Tensor:
    return _similar(coder) & (coder.figures.neighbour_correlations > DUPLICATE_CORRELATION)


NAME: Column[ComparedCoder] = Column("coder", value=lambda coder: coder.candidate.name)
COLUMNS = (
    _column("latents", "latents", lambda c: c.figures.latents, "d"),
    _column("FVU", "fvu", lambda c: c.figures.fvu, ".3f"),
    _column("", "explained_variance", _explained),
    _column("cosine", "cosine", lambda c: c.figures.cosine, ".3f"),
    _column("", "cross_entropy_clean", lambda c: c.losses.clean),
    _column("", "cross_entropy_spliced", lambda c: c.losses.spliced),
    _column("", "cross_entropy_zero_ablated", lambda c: c.losses.zero_ablated),
    _column("", "cross_entropy_mean_ablated", lambda c: c.losses.mean_ablated),
    _column(
        "CE recovered", "recovered_of_zero_ablation", lambda c: c.losses.recovered_of_zero, ".1%"
    ),
    _column(
        "of mean ablation",
        "recovered_of_mean_ablation",
        lambda c: c.losses.recovered_of_mean,
        ".1%",
    ),
    _column("KL", "kl_divergence", lambda c: c.losses.divergence, ".3f"),
    _column("L0", "l0", lambda c: c.figures.l0, ".1f"),
    _column("±", "l0_deviation", lambda c: c.figures.l0_deviation, ".1f"),
    _column("dead", "dead", lambda c: int((c.figures.rates == 0).sum()), "d"),
    _column("dense", "dense", lambda c: int((c.figures.rates > DENSE).sum()), "d"),
    _column(
        "ultra-high", "ultra_high_frequency", lambda c: int((c.figures.rates > ULTRA).sum()), "d"
    ),
    _column("entropy, bits", "entropy_bits", lambda c: c.figures.entropy_bits, ".0f"),
    _column("bits a token", "bits", lambda c: c.figures.bits, ".0f"),
    _column("bits, MDL", "mdl_bits", _mdl_bits, ".0f"),
    *map(_rate_quantile, (0.05, 0.25, 0.5, 0.75, 0.95)),
    _column("", "neighbour_cosine_median", lambda c: c.figures.neighbour_cosines.median().item()),
    _column("similar", "similar", lambda c: int(_similar(c).sum()), "d"),
    _column("duplicates", "duplicates", lambda c: int(_duplicate(c).sum()), "d"),
    *map(_predictable, STRATA),
    _column("encode, tokens/s", "tokens_per_second", lambda c: c.figures.tokens_per_second, ",.0f"),
)


def site_tables(coders: list[ComparedCoder]) -> list[Table]:
    """Tables of a comparison, one for each site."""
    by_site = grouped(coders, lambda coder: str(coder.candidate.site))
    return [table_of(site, [NAME, *COLUMNS], own) for site, own in by_site.items()]


def comparison_table(coders: list[ComparedCoder]) -> str:
    """The tables for the terminal, without intervals, because the files have them."""
    return "\n\n".join(table.without_intervals() for table in site_tables(coders))


def write_comparison(coders: list[ComparedCoder], run: dict[str, Any], folder: Path) -> None:
    """Write metrics.json and metrics.csv with unrounded figures (docs/compare.md has the keys)."""
    entries: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for coder in coders:
        about, figures = _described(coder), _figures(coder)
        config = coder.candidate.coder.cfg.to_dict()
        settings = {name: config[name] for name in config if name not in ("metadata", "device")}
        entries.append(about | {"settings": settings} | figures | {"matches": _matches(coder)})
        rows.append(about | _flat(figures))
    meanings = {column.key: column.meaning for column in COLUMNS}
    path = folder / "metrics.json"
    write_figures(path, SCHEMA_VERSION, run, "documents", meanings=meanings, coders=entries)
    with (folder / "metrics.csv").open("w", newline="") as file:
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


def _figures(coder: ComparedCoder) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for column in COLUMNS:
        figure = as_json(column.of(coder))
        if not isinstance(figure, dict):
            figure = {"value": figure}
        elif None in figure["interval"]:
            figure["interval"] = None
        figures[column.key] = figure
    return figures


def _matches(coder: ComparedCoder) -> dict[str, Any]:
    """How well the latents of each other coder at the site match the sampled latents."""
    found: dict[str, Any] = {}
    for name, matches in coder.matches.items():
        known = matches.correlations[matches.correlations.isfinite()]
        found[name] = {
            "latents": len(known),
            "median_correlation": as_json(known.median().item()) if len(known) else None,
            "above_0.7": int((known > MATCHED).sum()),
        }
    return found


def _flat(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, figure in figures.items():
        flat[key] = figure["value"]
        if "interval" in figure:
            flat[f"{key}_low"], flat[f"{key}_high"] = figure["interval"] or ("", "")
    return flat
