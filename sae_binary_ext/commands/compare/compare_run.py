"""`sae-binary compare` from start to end: coders, model, text, figures, files."""

from collections.abc import Mapping
from dataclasses import asdict

import plotly.graph_objects as go

from sae_binary_ext.commands.compare.compare_page import write_comparison_report
from sae_binary_ext.commands.compare.config import CompareConfig
from sae_binary_ext.commands.compare.latent_views import latent_views
from sae_binary_ext.commands.interpret.interpret_page import read_interpretability
from sae_binary_ext.measure.candidates import load_candidates
from sae_binary_ext.measure.comparison import Comparison
from sae_binary_ext.measure.documents import HELD_OUT_ARTICLES, read_documents
from sae_binary_ext.measure.in_model import open_model
from sae_binary_ext.report.comparison_files import comparison_table, write_comparison


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
