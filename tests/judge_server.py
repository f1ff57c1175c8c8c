"""A judge on loopback: it speaks the chat-completions protocol, answers by a rule, and can fail."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, Any]]
# Number of tokens that each answer reports, and seconds that a slow answer takes.
TOKENS, SLOW = 10, 1.0


class JudgeServer(ThreadingHTTPServer):
    """A server that answers by a rule, a function of the messages. It listens after start().

    A rule returns the answer's text, or the fields of the answer's message.

    Attributes:
        asked: messages of all requests, including those that met a fault.
        answered: messages of the requests that were answered.
        faults: faults of the next requests, in order: busy, malformed, empty, dropped, slow, or
            None for no fault.
        dies_after: number of requests after which all later ones are dropped.
    """

    daemon_threads = True

    def __init__(self, rule: Callable[[Messages], str | dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule = rule
        self.asked: list[Messages] = []
        self.answered: list[Messages] = []
        self.faults: list[str | None] = []
        self.dies_after: int | None = None
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def start(self) -> None:
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def next_fault(self, messages: Messages) -> str | None:
        with self.lock:
            self.asked.append(messages)
            if self.dies_after is not None and len(self.asked) > self.dies_after:
                return "dropped"
            return self.faults.pop(0) if self.faults else None


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers["Authorization"])
        messages = request["messages"]
        match self.server.next_fault(messages):
            case "busy":
                self._send(429, json.dumps({"error": {"message": "later"}}))
            case "malformed":
                self._send(200, '{"choices": [')
            case "empty":
                self._send(200, json.dumps({"choices": []}))
            case "dropped":
                self.connection.shutdown(socket.SHUT_RDWR)
            case "slow":
                time.sleep(SLOW)
                self._answer(messages)
            case _:
                self._answer(messages)

    def _answer(self, messages: Messages) -> None:
        said = self.server.rule(messages)
        fields = said if isinstance(said, dict) else {"content": said}
        message = {"role": "assistant", **fields}
        usage = {"prompt_tokens": TOKENS - 1, "completion_tokens": 1, "total_tokens": TOKENS}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        with self.server.lock:
            self.server.answered.append(messages)
        self._send(200, json.dumps({"choices": choices, "usage": usage}))

    def _send(self, status: int, body: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())
        except ConnectionError:
            pass  # the client has given up waiting

    def log_message(self, format: str, *args: Any) -> None:
        pass


def is_scoring(messages: Messages) -> bool:
    """Whether one of delphi's scorers asks, and not its explainer."""
    return "Latent explanation" in messages[-1]["content"]


def windows_of(messages: Messages) -> list[str]:
    """The windows of text that a scorer asks about."""
    return re.findall(r"^Example \d+:(.*)$", messages[-1]["content"], re.MULTILINE)


def noise(messages: Messages) -> str:
    """A rule with random answers, which gives the same answer to the same windows again."""
    if not is_scoring(messages):
        return "[EXPLANATION]: some words"
    digits = hashlib.sha256(messages[-1]["content"].encode()).digest()
    return str([digit % 2 for digit in digits[: len(windows_of(messages))]])
