"""`sae-binary search`: answers a query or a prompt as text and JSON."""

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.commands.search.code_index import Answer, CodeIndex, Cofiring, Neighbour

SCHEMA_VERSION = 1


def search(options: Namespace) -> Iterator[str]:
    """Answer as the command line asks; yields the text to print.

    ValueError if the path is no index, the query does not parse, or not exactly one of query, near
    and serve is given.
    """
    ways = {"QUERY": options.query, "--near": options.near, "--serve": options.serve or None}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'no query'}. Give one of {', '.join(ways)}.")
    check_at_least(1, show=options.show)
    index = CodeIndex.open(options.index, options.labels)
    if options.serve:
        from sae_binary_ext.commands.search.search_server import serve

        yield from serve(index, options.port)
    elif options.near is not None:
        yield from _near(index, options)
    else:
        yield from _query(index, options)


def _query(index: CodeIndex, options: Namespace) -> Iterator[str]:
    answer = index.query(options.query, options.within, options.window)
    yield str(answer)
    if index.folder.header.has_values:
        yield "The coder is a stock coder: a latent fires where its value is not 0."
    results = described(answer)
    if not options.count:
        passages = index.passages(answer, options.show)
        yield from map(str, passages)
        results["passages"] = [asdict(passage) for passage in passages]
    if options.cofiring:
        latents = index.cofiring(answer, options.show)
        yield cofiring_table(index, latents)
        results["cofiring"] = [asdict(latent) for latent in latents]
    _write(options, results)


def _near(index: CodeIndex, options: Namespace) -> Iterator[str]:
    from sae_binary_ext.commands.search.prompt_codes import latents_of_prompt

    latents = latents_of_prompt(index.folder, options.near, options.within)
    found = index.nearest(latents, options.show, options.distance, options.within)
    yield f"{len(latents)} latents fire: {', '.join(map(str, latents))}"
    yield from (_line(each) for each in found)
    _write(options, {"latents": latents, "nearest": [asdict(each) for each in found]})


def _line(neighbour: Neighbour) -> str:
    return f"{neighbour.distance:g}  {neighbour.passage}"


def described(answer: Answer) -> dict[str, Any]:
    """An answer for JSON files and for the page."""
    told = {"query": answer.query, "units": answer.scope.many, "count": answer.count}
    return told | {"among": answer.among, "text": str(answer)}


def cofiring_table(index: CodeIndex, latents: Iterable[Cofiring]) -> str:
    """A line for each latent: lift, units in which it fires, and its label if it has one."""
    lines = ["latents that fire with it:     lift   units"]
    for each in latents:
        label = index.labels.get(each.latent, "")
        lines.append(f"    {each.latent:<22} {each.lift:8.1f} {each.together:7,} {label}".rstrip())
    return "\n".join(lines if len(lines) > 1 else ["no other latent fires with it often enough"])


def _write(options: Namespace, results: dict[str, Any]) -> None:
    path: Path | None = options.json
    if path is not None:
        run = {name: str(value) for name, value in vars(options).items()}
        document = {"schema_version": SCHEMA_VERSION, "command": "search", "run": run}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document | {"results": results}, indent=1))
