"""English text without a download: the sample of Wikipedia inside gensim's wheel."""

import bz2
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIKIPEDIA_SAMPLE = (
    "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
# Shorter entries are left out, because most are redirects.
MINIMUM_CHARACTERS = 1000
# Every tenth article is held out as a whole, because its parts share names and topics.
HELD_OUT_EVERY = 10


def find_wikipedia_sample() -> Path:
    """Path of the compressed dump in gensim. ModuleNotFoundError if gensim is not installed."""
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
    from gensim.corpora import wikicorpus  # importing gensim takes seconds

    namespaces: Any = ("0",)
    with bz2.open(find_wikipedia_sample()) as dump:
        for title, markup, _ in wikicorpus.extract_pages(dump, filter_namespaces=namespaces):
            # gensim does not remove the quotes of bold and italic text, nor repeated blank lines.
            text = re.sub(r"'{2,5}", "", wikicorpus.filter_wiki(markup))
            text = re.sub(r"[ \t]+\n", "\n", text)
            text = re.sub(r"\n{3,}", "\n\n", text).strip('"\n ')
            if len(text) >= MINIMUM_CHARACTERS:
                yield title, text


def is_held_out(number: int) -> bool:
    """Whether the article of this number in the sample is held out from training."""
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def read_held_out_articles() -> Iterator[str]:
    """Yield the plain text of each held-out article."""
    articles = enumerate(read_wikipedia_sample())
    yield from (text for number, (_, text) in articles if is_held_out(number))
