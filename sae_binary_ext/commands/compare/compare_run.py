"""`sae-binary compare`: loads coders, model and text, measures, and writes files."""

from collections.abc import Mapping

import plotly.graph_objects as go

from sae_binary_ext.commands.compare.compare_page import latent_views, write_comparison_report
from sae_binary_ext.commands.compare.config import CompareConfig
from sae_binary_ext.commands.interpret.interpret_page import read_interpretability
from sae_binary_ext.measure.candidates import check_alike, load_candidates
from sae_binary_ext.measure.comparison import Comparison
from sae_binary_ext.measure.documents import HELD_OUT_ARTICLES
from sae_binary_ext.measure.reading import open_in_model, settings_of
from sae_binary_ext.measure.saved_activations import read_from_file
from sae_binary_ext.report.comparison_files import comparison_table, write_comparison
from sae_binary_ext.settings import Amount


def run_compare(
    coders: list[str], config: CompareConfig, more_plots: Mapping[str, go.Figure] | None = None
) -> str:
    """Compare coders and write the files to config.output.

    Args:
        coders: folders of coders, Hub ids, or releases of SAELens, as in load_candidates.
        config: the command's settings.
        more_plots: further plots for the report, by title.

    Returns:
        The comparison as tables for the terminal.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: the coders cannot be compared, or the text cannot be read.
    """
    candidates = load_candidates(coders, config.hook, config.device)
    check_alike(candidates)
    # Read the scores first, so that a mistake is reported before minutes of measuring.
    interpretability = None
    if config.interpretation is not None:
        names = [candidate.name for candidate in candidates]
        interpretability = read_interpretability(config.interpretation, names)
    opened = open_in_model(candidates, config, config.output)
    if config.activations is not None:
        opened = read_from_file(opened, config)
    text = config.text_source().names(HELD_OUT_ARTICLES)
    sources = opened.model_name, opened.precision, *text, *config.files_of_activations()
    amount = Amount(config.tokens, config.spliced_tokens, latents=config.latents)
    compared = Comparison(opened, amount, config.output / "progress.safetensors", sources).run()
    run = settings_of(opened, config)
    write_comparison(compared, run, config.output)
    views = [latent_views(each, opened.model, opened.tokenizer) for each in compared]
    page = config.output / "report.html"
    write_comparison_report(compared, views, run, page, more_plots, interpretability)
    return comparison_table(compared)
