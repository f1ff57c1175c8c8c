"""The frame of the instruments: open coders or a model, measure, make the page, write the files."""

from collections.abc import Callable
from typing import TypeVar

from sae_binary_ext.measure.reading import OpenedModel, open_coders, open_model_alone, settings_of
from sae_binary_ext.report.analysis import Analysis, write_analysis
from sae_binary_ext.settings import ReadingConfig

Config = TypeVar("Config", bound=ReadingConfig)
Found = TypeVar("Found")


def analyse_coders(
    coders: list[str],
    config: Config,
    measure: Callable[[OpenedModel, Config], Found],
    page: Callable[[Found, Config], Analysis],
) -> Analysis:
    """Open coders with their model, measure them, and write the results to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the command's settings.
        measure: reads the text and measures the coders.
        page: makes tables, plots and remarks of what measure found.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: the coders cannot be measured together, or the text cannot be read.
    """
    return _analyse(open_coders(coders, config, config.output), config, measure, page)


def analyse_model(
    config: Config,
    measure: Callable[[OpenedModel, Config], Found],
    page: Callable[[Found, Config], Analysis],
) -> Analysis:
    """As analyse_coders, with the model alone."""
    return _analyse(open_model_alone(config, config.output), config, measure, page)


def _analyse(
    opened: OpenedModel,
    config: Config,
    measure: Callable[[OpenedModel, Config], Found],
    page: Callable[[Found, Config], Analysis],
) -> Analysis:
    analysis = page(measure(opened, config), config)
    write_analysis(analysis, settings_of(opened, config), config.output)
    return analysis
