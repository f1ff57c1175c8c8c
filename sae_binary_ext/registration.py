"""Which host gets which adapter, and when; and which versions of a host an adapter works with."""

import importlib
import logging
import sys
from dataclasses import dataclass
from operator import attrgetter
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


@dataclass(frozen=True)
class Host:
    """What an adapter needs of its host.

    Attributes:
        module: the name the host is imported by.
        package: the name it is installed by.
        oldest: the oldest version that works.
        below: the first version that is not expected to work.
        newest: the newest version that the tests have passed with.
        private: names that the host may change without notice and the adapter uses, each as
            "module:Class.name".
    """

    module: str
    package: str
    oldest: str
    below: str
    newest: str
    private: tuple[str, ...]

    def missing(self) -> list[str]:
        """The private names that the imported host does not have."""
        return [name for name in self.private if not _exists(name)]

    def check(self) -> None:
        """Raise ImportError if a private name is missing."""
        if missing := self.missing():
            from sae_binary_ext import __version__

            raise ImportError(
                f"{self.module} {sys.modules[self.module].__version__} has no "
                f"{', '.join(missing)}, which sae_binary_ext {__version__} needs for binary "
                f"coders. The newest version known to work is {self.newest}: "
                f"pip install '{self.package}=={self.newest}', or install a newer sae_binary_ext."
            )

    def is_usable(self) -> bool:
        """Whether all private names are there. Logs a warning if not, or at an untested version."""
        warn_if_untested(sys.modules[self.module], self.oldest, self.below)
        try:
            self.check()
        except ImportError as error:
            logger.warning("%s Stock coders work as before.", error)
            return False
        return True


def register() -> None:
    """Register the binary coders with each host that is imported, now or later. Idempotent."""
    for host in ADAPTERS.keys() - _watched:
        _watched.add(host)
        wrapt.register_post_import_hook(_register_with, host)


def warn_if_untested(host: ModuleType, oldest: str, below: str) -> None:
    """Log a warning if the host's version is outside the range that the adapter is made for."""
    if not Version(oldest) <= Version(host.__version__) < Version(below):
        logger.warning(
            "Made for %s from %s to below %s; this is %s and may still work.",
            host.__name__,
            oldest,
            below,
            host.__version__,
        )


def _exists(name: str) -> bool:
    module, _, path = name.partition(":")
    try:
        attrgetter(path)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True


def _register_with(host: ModuleType) -> None:
    try:
        adapter = importlib.import_module(ADAPTERS[host.__name__])
    except ImportError as error:
        # The host's import must not fail because of us: whoever imports the adapter gets the error.
        logger.warning(
            "No binary coders in %s %s, which lacks what the adapter imports: %s",
            host.__name__,
            host.__version__,
            error,
        )
        return
    adapter.register()
