"""A page for queries, served to this machine alone."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.commands.search.code_index import DEFAULT_WINDOW, CodeIndex
from sae_binary_ext.commands.search.search_run import described

LOOPBACK = "127.0.0.1"
MOST_SHOWN = 100
# Nothing from elsewhere is loaded, and no other page may show this one in a frame.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'"
)


def serve(index: CodeIndex, port: int) -> Iterator[str]:
    """Serve the page until Ctrl-C; yields its address. ValueError if the port is not to be had."""
    with server_of(index, port) as server:
        yield f"http://{LOOPBACK}:{server.server_port}/ (Ctrl-C stops it)"
        server.serve_forever()


def server_of(index: CodeIndex, port: int) -> ThreadingHTTPServer:
    """A server of the page, not yet started. It listens on the loopback address alone."""

    class Handler(_Handler):
        searched = index

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"port={port}: {error}. Give another, or 0 for a free one.") from error


def answer_to(index: CodeIndex, asked: dict[str, str]) -> dict[str, Any]:
    """Answer the page's fields: query, within, window, show, cofiring. ValueError as for query."""
    show = int(asked.get("show", 10))
    check_at_least(1, show=show)
    window = int(asked.get("window", DEFAULT_WINDOW))
    answer = index.query(asked.get("query", ""), asked.get("within", "token"), window)
    found = described(answer)
    found["passages"] = [asdict(each) for each in index.passages(answer, min(show, MOST_SHOWN))]
    if asked.get("cofiring"):
        latents = index.cofiring(answer, min(show, MOST_SHOWN))
        found["cofiring"] = [
            asdict(each) | {"label": index.labels.get(each.latent, "")} for each in latents
        ]
    return found


class _Handler(BaseHTTPRequestHandler):
    searched: CodeIndex

    def do_GET(self) -> None:
        """The page, or the answer to its fields as JSON."""
        host = (self.headers.get("Host") or "").partition(":")[0]
        address = urlsplit(self.path)
        # Another host name would mean that a page elsewhere has this address under its own name.
        if host not in (LOOPBACK, "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "This page is for this machine alone.")
        elif address.path == "/":
            page = files(__package__ or "").joinpath("search.html").read_text(encoding="utf-8")
            self._send(HTTPStatus.OK, "text/html", page)
        elif address.path == "/search":
            asked = {name: values[-1] for name, values in parse_qs(address.query).items()}
            status, answer = HTTPStatus.OK, {}
            try:
                answer = answer_to(self.searched, asked)
            except ValueError as error:
                status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
            self._send(status, "application/json", json.dumps(answer))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page.")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal shows the address alone."""
