"""Which host gets which adapter, and when."""

import importlib
from types import ModuleType

import wrapt

# Host module to the adapter's module whose register() tells that host about the binary coders.
ADAPTERS = {
    "sae_lens": "sae_binary_ext.saelens.register",
    "sparsify": "sae_binary_ext.sparsify.register",
}

_watched: set[str] = set()


def register() -> None:
    """Register the binary coders with each host that is imported, now or later. Idempotent."""
    for host in ADAPTERS.keys() - _watched:
        _watched.add(host)
        wrapt.register_post_import_hook(_register_with, host)


def _register_with(host: ModuleType) -> None:
    importlib.import_module(ADAPTERS[host.__name__]).register()
