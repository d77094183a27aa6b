"""What happens around every request: its id, its clock, its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request

from inference import logs
from inference.body import Body
from inference.config import RESERVED_ROUTES, Config

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


def register(app: Flask, config: Config) -> None:
    """Give every request of ``app`` an id, a body within the limit and a log line."""

    @app.before_request
    def begin() -> None:
        g.started = time.monotonic()
        g.queue = queued_seconds(request.headers.get("X-Request-Start"), time.time())
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        g.log_token = logs.request_id.set(g.request_id)
        g.body = Body(request.environ, config.max_body_bytes)

    @app.after_request
    def end(response: Response) -> Response:
        g.body.drain()
        response.headers["X-Request-ID"] = g.request_id
        response.headers["Cache-Control"] = "no-store"
        level = _level(request.path, response.status_code)
        if _log.isEnabledFor(level):
            facts = {
                "method": request.method,
                "path": request.path[:256],
                "status": response.status_code,
                "bytes_in": g.body.seen,
                "bytes_out": response.content_length,
                "client": request.remote_addr,
                "problem": g.get("problem"),
                "timing_ms": g.get("timing_ms") or _timing(),
            }
            _log.log(level, "request", extra={"facts": facts})
        return response

    @app.teardown_request
    def forget(_: BaseException | None) -> None:
        # Threads are used again for other requests.
        if token := g.pop("log_token", None):
            logs.request_id.reset(token)


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds with three decimals."""
    return round(seconds * 1000.0, 3)


def _timing() -> dict[str, float]:
    return {"queue": milliseconds(g.queue), "total": milliseconds(g.queue + time.monotonic() - g.started)}


def _level(path: str, status: int) -> int:
    if status in (503, 504):
        return logging.WARNING
    if status >= 500:
        return logging.ERROR
    return logging.DEBUG if path in RESERVED_ROUTES and status < 400 else logging.INFO
