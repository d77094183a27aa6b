"""A real HTTP server whose answers a test scripts, one after the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD: dict[str, Any] = {
    "request_id": "set by the server",
    "model": {"name": "pp-ocrv6", "release": "r1"},
    "device": "cpu0",
    "width": 90,
    "height": 30,
    "text": "one\ntwo",
    "lines": [
        {"text": "one", "score": 0.9, "box": [[1.0, 2.0], [30.0, 2.0], [30.0, 9.0], [1.0, 9.0]]},
        {"text": "two", "score": 0.8, "box": [[1, 12], [30, 12], [30, 19], [1, 19]]},
    ],
    "timing_ms": {"queue": 0.1, "decode": 0.2, "compute": 5.0, "total": 5.5},
}


@dataclass
class Request:
    """A request as it arrived."""

    path: str
    headers: Message
    body: bytes
    #: Instant of time.monotonic.
    at: float
    #: Tells connections apart.
    connection: int


#: Answers one request, in whatever way the test wants.
Answer = Callable[[BaseHTTPRequestHandler, Request], None]


@dataclass
class Scripted:
    """The server's script and what came of it; the last answer of the script is given from then on."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def waits(self) -> list[float]:
        """Seconds between the requests."""
        return [after.at - before.at for before, after in zip(self.requests, self.requests[1:], strict=False)]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def good(**changes: Any) -> Answer:
    """An answer of an OCR service, with the request's own id."""

    def answer(handler: BaseHTTPRequestHandler, request: Request) -> None:
        members = {**GOOD, "request_id": request.headers["X-Request-ID"], **changes}
        send(handler, 200, json.dumps(members).encode(), {"Content-Type": "application/json"})

    return answer


def problem(status: int, slug: str, **headers: str) -> Answer:
    """A problem, as the server writes it; headers with _ for -."""

    def answer(handler: BaseHTTPRequestHandler, request: Request) -> None:
        members = {
            "type": f"urn:inference-fleet:problem:{slug}",
            "title": slug.title(),
            "status": status,
            "detail": "Seen 1.",
            "request_id": request.headers["X-Request-ID"],
        }
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        send(handler, status, json.dumps(members).encode(), {"Content-Type": "application/problem+json", **given})

    return answer


def plain(status: int, body: bytes = b"", **headers: str) -> Answer:
    """An answer of something else than the service."""

    def answer(handler: BaseHTTPRequestHandler, request: Request) -> None:
        send(handler, status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def half(handler: BaseHTTPRequestHandler, request: Request) -> None:
    """The beginning of an answer, then the end of the connection."""
    send(handler, 200, b'{"request_id"', {"Content-Length": "1000"})
    handler.close_connection = True


def cut(handler: BaseHTTPRequestHandler, request: Request) -> None:
    """No byte of an answer, and the end of the connection."""
    handler.close_connection = True


def after(seconds: float, then: Answer) -> Answer:
    """Answer late."""

    def answer(handler: BaseHTTPRequestHandler, request: Request) -> None:
        time.sleep(seconds)
        then(handler, request)

    return answer


def drops(handler: BaseHTTPRequestHandler, request: Request) -> None:
    """An answer that comes drop by drop, for as long as somebody reads."""
    send(handler, 200, b"{", {"Content-Length": "1000"})
    for _ in range(999):
        time.sleep(0.05)
        handler.wfile.write(b" ")
        handler.wfile.flush()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, self.headers, body, time.monotonic(), id(self.connection))
        self.scripted.next(request)(self, request)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is what some of the tests are about."""


@contextmanager
def serving(port: int = 0) -> Iterator[Scripted]:
    """Run the server on a free port until the end of the block."""
    scripted = Scripted(script=[good()])
    handler = type("Handler", (_Handler,), {"scripted": scripted})
    with _Server(("127.0.0.1", port), handler) as server:
        scripted.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield scripted
        finally:
            server.shutdown()
            thread.join()
