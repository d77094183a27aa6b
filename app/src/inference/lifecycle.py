"""What happens around every request: its id, its clock, its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request

from inference import logs
from inference.body import Body
from inference.config import RESERVED_ROUTES, Config

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from inference.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+=/-]{1,128}")
REQUEST_START = re.compile(r"t=([0-9]{1,12}(?:\.[0-9]{1,9})?)")
#: A request that claims to have waited longer has a wrong clock behind it.
LONGEST_QUEUE_SECONDS = 3600.0

_log = logging.getLogger(__name__)


def queued_seconds(header: str | None, now: float) -> float:
    """Time since nginx handed the request over, from its ``X-Request-Start: t=<seconds since the epoch>``.

    Gives 0 when the header is absent, malformed, or from the future or a distant past.
    """
    match = REQUEST_START.fullmatch(header or "")
    if match is None:
        return 0.0
    age = now - float(match[1])
    return age if 0.0 <= age <= LONGEST_QUEUE_SECONDS else 0.0


class Exchange:
    """One request, from its arrival to the line in the log.

    Args:
        environ: the request, as WSGI gives it.
        limit: bytes that its body may have.
        metrics: where it is counted, if anywhere.
    """

    __slots__ = (
        "_environ", "_log_token", "_metrics", "body", "problem", "queue", "request_id", "stages", "started", "timing",
    )  # fmt: skip

    def __init__(self, environ: WSGIEnvironment, limit: int, metrics: Metrics | None = None) -> None:
        self._environ = environ
        self._metrics = metrics
        if metrics is not None:
            metrics.began()
        #: Instant of :func:`time.monotonic` at which it arrived.
        self.started = time.monotonic()
        #: Seconds that it waited before that, since nginx handed it over.
        self.queue = queued_seconds(environ.get("HTTP_X_REQUEST_START"), time.time())
        given = environ.get("HTTP_X_REQUEST_ID", "")
        self.request_id: str = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._log_token = logs.request_id.set(self.request_id)
        self.body = Body(environ, limit)
        #: Last part of the problem's type, when it is answered with one.
        self.problem: str | None = None
        #: Where its time went, as :func:`timing_of` writes it.
        self.timing: str | None = None
        #: The same in seconds, in the order of :data:`inference.metrics.STAGES`.
        self.stages: tuple[float, ...] | None = None

    @property
    def method(self) -> str:
        """Its method."""
        method: str = self._environ["REQUEST_METHOD"]
        return method

    @property
    def path(self) -> str:
        """Its path without the query; WSGI gives the bytes of it as latin-1."""
        path: str = self._environ.get("PATH_INFO", "")
        return path if path.isascii() else path.encode("latin-1", "replace").decode(errors="replace")

    @property
    def total(self) -> float:
        """Seconds since nginx handed it over."""
        return self.queue + time.monotonic() - self.started

    def headers(self) -> list[tuple[str, str]]:
        """Headers that every answer has."""
        return [("X-Request-ID", self.request_id), ("Cache-Control", "no-store")]

    def finish(self, status: int, bytes_out: int | None) -> None:
        """Read away what is left of the body, and write the line."""
        self.body.drain()
        path = self.path
        if self._metrics is not None:
            self._metrics.finished(path, status, self.problem, self.stages)
        level = _level(path, status)
        if not _log.isEnabledFor(level):
            return
        timing = self.timing or timing_of(queue=self.queue, total=self.total)
        optional = "" if bytes_out is None else f', "bytes_out": {bytes_out}'
        if client := self._environ.get("REMOTE_ADDR"):
            optional += f', "client": {logs.quoted(client)}'
        if self.problem:
            optional += f', "problem": "{self.problem}"'
        # Not through _log.log(), which looks up the caller's file and line for each record, and the line has neither;
        # and with text in place of facts: this line comes with each request.
        record = logging.LogRecord(_log.name, level, "", 0, "request", None, None)
        record.members = (
            f'"method": {logs.quoted(self.method)}, "path": {logs.quoted(path[:256])}, "status": {status}, '
            f'"bytes_in": {self.body.seen}{optional}, "timing_ms": {timing}'
        )
        _log.handle(record)

    def forget(self) -> None:
        """Clear what belongs to this request: threads are used again for other requests."""
        logs.request_id.reset(self._log_token)


def current() -> Exchange:
    """Give the request that Flask works on."""
    exchange: Exchange = g.exchange
    return exchange


def register(app: Flask, config: Config, metrics: Metrics | None) -> None:
    """Give every request that Flask answers an id, a body within the limit, a log line and a place in the metrics."""

    @app.before_request
    def begin() -> None:
        g.exchange = Exchange(request.environ, config.max_body_bytes, metrics)

    @app.after_request
    def end(response: Response) -> Response:
        exchange = current()
        response.headers.update(exchange.headers())
        exchange.finish(response.status_code, response.content_length)
        return response

    @app.teardown_request
    def forget(_: BaseException | None) -> None:
        if exchange := g.pop("exchange", None):
            exchange.forget()


def timing_of(**seconds: float) -> str:
    """Write seconds as a JSON object of milliseconds with three decimals, for the answer and the line in the log."""
    return "{" + ",".join([f'"{name}":{round(value * 1000.0, 3)}' for name, value in seconds.items()]) + "}"


def _level(path: str, status: int) -> int:
    if status in (503, 504):
        return logging.WARNING
    if status >= 500:
        return logging.ERROR
    return logging.DEBUG if path in RESERVED_ROUTES and status < 400 else logging.INFO
