"""Which host gets which adapter, and when."""

import importlib
import logging
from types import ModuleType

import wrapt
from packaging.version import Version

# Host module to the adapter's module whose register() tells that host about the binary coders.
ADAPTERS = {
    "sae_lens": "sae_binary_ext.saelens.register",
    "sparsify": "sae_binary_ext.sparsify.register",
}

logger = logging.getLogger(__name__)

_watched: set[str] = set()


def register() -> None:
    """Register the binary coders with each host that is imported, now or later. Idempotent."""
    for host in ADAPTERS.keys() - _watched:
        _watched.add(host)
        wrapt.register_post_import_hook(_register_with, host)


def warn_if_untested(host: ModuleType, oldest: str, below: str) -> None:
    """Log a warning where the host's version is not one the adapter was tested with."""
    if not Version(oldest) <= Version(host.__version__) < Version(below):
        logger.warning(
            "Tested with %s from %s to below %s; this is %s and may still work.",
            host.__name__,
            oldest,
            below,
            host.__version__,
        )


def _register_with(host: ModuleType) -> None:
    importlib.import_module(ADAPTERS[host.__name__]).register()
