"""`sae-binary compare` from start to end: coders, model, text, figures, files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import plotly.graph_objects as go

from sae_binary_ext.evaluation.candidates import load_candidates
from sae_binary_ext.evaluation.compare import Amount, Comparison
from sae_binary_ext.evaluation.comparison_files import comparison_table, write_comparison
from sae_binary_ext.evaluation.comparison_report import write_comparison_report
from sae_binary_ext.evaluation.documents import HELD_OUT_ARTICLES, read_documents
from sae_binary_ext.evaluation.interpretation.section import read_interpretability
from sae_binary_ext.evaluation.latent_views import latent_views
from sae_binary_ext.evaluation.models import open_model
from sae_binary_ext.evaluation.text_config import TextConfig


@dataclass
class CompareConfig(TextConfig):
    """
    Measure coders of either host and any format on the same tokens of the same model: what they
    keep, what the model loses with them in place, and how their latents fire. Ctrl-C and the
    same command again: it goes on where it was.
    """

    output: Path = Path("runs/compare")
    """Folder for report.html, metrics.json, metrics.csv, and what an interrupted run goes on
    from."""
    spliced_tokens: int = 10_000
    """Of these, tokens on which each coder's output is put into the model."""
    latents: int = 200
    """Latents of each coder in the report's browser, drawn at random."""
    interpretation: Path | None = None
    """Folder of a run of sae-binary interpret on these coders: the report shows its scores, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.amount()

    def amount(self) -> Amount:
        """How much text is used."""
        return Amount(
            self.tokens,
            self.spliced_tokens,
            self.context_size,
            self.first_position,
            self.latents,
        )


def run_compare(
    coders: list[str],
    config: CompareConfig,
    more_plots: Mapping[str, go.Figure] | None = None,
) -> str:
    """Compare coders; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.
        more_plots: others for the report, by title.

    Returns:
        The comparison as tables for the terminal.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders that cannot be compared, or text that cannot be read.
    """
    candidates = load_candidates(coders, config.hook, config.device)
    # First: what is wrong with it is known at once, and measuring takes minutes.
    interpretability = None
    if config.interpretation is not None:
        names = [candidate.name for candidate in candidates]
        interpretability = read_interpretability(config.interpretation, names)
    config.output.mkdir(parents=True, exist_ok=True)
    name, model, tokenizer = open_model(candidates, config.model, config.output, config.device)
    source = config.text_source()
    comparison = Comparison(
        candidates,
        model,
        tokenizer,
        lambda: read_documents(source),
        config.amount(),
        config.output / "progress.safetensors",
        (name, *source.names(HELD_OUT_ARTICLES)),
    )
    compared = comparison.run()
    run = {key: str(value) for key, value in asdict(config).items()}
    run |= {"model": name, "dataset": config.dataset or HELD_OUT_ARTICLES}
    run |= {"context_size": str(comparison.context_size)}
    write_comparison(compared, run, config.output)
    views = [latent_views(each, model, tokenizer) for each in compared]
    page = config.output / "report.html"
    write_comparison_report(compared, views, run, page, more_plots, interpretability)
    return comparison_table(compared)
