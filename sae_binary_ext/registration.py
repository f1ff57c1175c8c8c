"""Registers each host's adapter when the host is imported, and checks the host's version."""

import logging
import sys
from dataclasses import dataclass
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType

import wrapt
from packaging.version import Version

# The adapter package of each host, whose submodule `register` adds binary coders to the host.
ADAPTERS = {"sae_lens": "saelens", "sparsify": "sparsify"}

logger = logging.getLogger(__name__)

_watched: set[str] = set()


@dataclass(frozen=True)
class Host:
    """What an adapter needs of its host.

    Attributes:
        module, package: the names that the host is imported and installed by.
        oldest, below, newest: the oldest version that works, the first version that may not, and
            the newest version that passed the tests.
        private: names that the adapter uses and the host may change, as "module:Class.name".
    """

    module: str
    package: str
    oldest: str
    below: str
    newest: str
    private: tuple[str, ...]

    def check(self) -> None:
        """Raise ImportError if the imported host lacks a private name."""
        if missing := [name for name in self.private if not _exists(name)]:
            from sae_binary_ext import __version__

            raise ImportError(
                f"{self.module} {sys.modules[self.module].__version__} has no "
                f"{', '.join(missing)}, which sae_binary_ext {__version__} needs for binary "
                f"coders. The newest version known to work is {self.newest}: "
                f"pip install '{self.package}=={self.newest}', or install a newer sae_binary_ext."
            )

    def is_usable(self) -> bool:
        """Whether the host has all private names. Warns if not, or if the host is untested."""
        warn_if_untested(sys.modules[self.module], self.oldest, self.below)
        try:
            self.check()
        except ImportError as error:
            logger.warning("%s Stock coders work as before.", error)
            return False
        return True


def register() -> None:
    """Register the binary coders with each host that is or will be imported. Idempotent."""
    for host in ADAPTERS.keys() - _watched:
        _watched.add(host)
        wrapt.register_post_import_hook(_register_with, host)


def warn_if_untested(host: ModuleType, oldest: str, below: str) -> None:
    """Log a warning if the host's version is outside the range that the adapter is made for."""
    if not Version(oldest) <= Version(host.__version__) < Version(below):
        message = "Made for %s from %s to below %s; this is %s and may still work."
        logger.warning(message, host.__name__, oldest, below, host.__version__)


def _exists(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def _register_with(host: ModuleType) -> None:
    try:
        adapter = import_module(f"sae_binary_ext.{ADAPTERS[host.__name__]}.register")
    except ImportError as error:
        # Importing the host must not fail. Importing the adapter itself raises this error.
        message = "No binary coders in %s %s, which lacks what the adapter imports: %s"
        logger.warning(message, host.__name__, host.__version__, error)
        return
    adapter.register()
