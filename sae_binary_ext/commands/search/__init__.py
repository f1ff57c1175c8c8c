"""`sae-binary search`: finds text in an index by set algebra over latents."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import FileCommand, add_option, imported_late

if TYPE_CHECKING:
    from sae_binary_ext.commands.search.code_index import (
        Answer,
        CodeIndex,
        Cofiring,
        Neighbour,
        Passage,
    )
    from sae_binary_ext.commands.search.prompt_codes import latents_of_prompt
    from sae_binary_ext.commands.search.query import QueryError

__all__ = [
    "COMMAND",
    "Answer",
    "CodeIndex",
    "Cofiring",
    "Neighbour",
    "Passage",
    "QueryError",
    "latents_of_prompt",
]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help="folder of an index")
    query_help = (
        "latents by number, or by label in double quotes, with & | ! ( ) and "
        "`at least 2 of (1, 2, 3)`"
    )
    parser.add_argument("query", nargs="?", help=query_help)
    within_help = "what the query describes (default: %(default)s)"
    scopes = ("token", "window", "document")
    parser.add_argument("--within", choices=scopes, default="token", help=within_help)
    window_help = "tokens in a window (default: %(default)s)"
    parser.add_argument("--window", type=int, default=16, help=window_help)
    show_help = "passages and latents to show (default: %(default)s)"
    parser.add_argument("--show", type=int, default=10, help=show_help)
    parser.add_argument("--count", action="store_true", help="print the count alone")
    cofiring_help = "also show the latents that fire with the answer; reads the whole index"
    parser.add_argument("--cofiring", action="store_true", help=cofiring_help)
    labels_help = "JSON file {latent: label}; a query may then name labels"
    parser.add_argument("--labels", type=Path, help=labels_help)
    near_help = (
        "a prompt, in place of a query: find tokens with a code like that of its last token, or "
        "with --within document, documents with codes like those of all its tokens"
    )
    parser.add_argument("--near", metavar="PROMPT", help=near_help)
    distance_help = "distance for --near (default: %(default)s)"
    parser.add_argument(
        "--distance", choices=("hamming", "jaccard"), default="hamming", help=distance_help
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument(
        "--serve", action="store_true", help="open a page for queries, for this machine alone"
    )
    add_option(
        parser,
        "--port",
        type=int,
        default=8000,
        help="port of the page; 0 takes a free one (default: %(default)s)",
    )


def _search(options: Namespace) -> Iterable[str]:
    from sae_binary_ext.commands.search.search_run import search

    return search(options)


COMMAND = FileCommand(
    "search",
    "text in an index, by set algebra over latents or by a prompt",
    description="Finds the tokens, windows or documents of an index that a query describes. Needs "
    "the extra search.",
    add_arguments=_add_arguments,
    does=_search,
)
__getattr__ = imported_late(__name__, "code_index", "query", "prompt_codes")
