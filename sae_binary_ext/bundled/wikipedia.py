"""Real English text without a download: the Wikipedia sample inside gensim's own wheel."""

import bz2
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

WIKIPEDIA_SAMPLE = (
    "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
# Shorter entries are mostly redirects, and are left out.
MINIMUM_CHARACTERS = 1000
# Every tenth article is held out. Whole articles, because rows of one article resemble each other.
HELD_OUT_EVERY = 10


def find_wikipedia_sample() -> Path:
    """Path of the compressed Wikipedia dump in the installed gensim package.

    Raises:
        ModuleNotFoundError: gensim, or the sample in it, is not installed.
    """
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The Wikipedia sample comes from the package gensim, which is not installed. "
            "Install the demo's packages: pip install 'sae_binary_ext[demo]'."
        )
    path = Path(spec.origin).parent / WIKIPEDIA_SAMPLE
    if not path.is_file():
        raise ModuleNotFoundError(
            f"The installed gensim does not carry {WIKIPEDIA_SAMPLE}. "
            "Install a released wheel: pip install --force-reinstall gensim."
        )
    return path


def read_wikipedia_sample() -> Iterator[tuple[str, str]]:
    """Yield (title, plain text) of each article of the sample, in the dump's order."""
    # Imported here, because gensim takes seconds to import.
    from gensim.corpora import wikicorpus

    with bz2.open(find_wikipedia_sample()) as dump:
        for title, markup, _ in wikicorpus.extract_pages(
            dump,
            filter_namespaces=("0",),  # pyright: ignore[reportArgumentType]
        ):
            text = _tidy(wikicorpus.filter_wiki(markup))
            if len(text) >= MINIMUM_CHARACTERS:
                yield title, text


def is_held_out(number: int) -> bool:
    """Whether the article of this number in the sample is held out from training."""
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def read_held_out_articles() -> Iterator[str]:
    """Yield the plain text of each held-out article."""
    for number, (_, text) in enumerate(read_wikipedia_sample()):
        if is_held_out(number):
            yield text


def _tidy(text: str) -> str:
    """Remove what gensim's filter leaves behind: bold and italic quotes and runs of blank lines."""
    text = re.sub(r"'{2,5}", "", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip('"\n ')
