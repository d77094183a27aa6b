"""One attempt: a request is sent, and all that can come of it has its place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from urllib3 import BaseHTTPResponse, Timeout, encode_multipart_formdata
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidHeader, NewConnectionError, SSLError
from urllib3.util import Retry

from inference.client.connections import Address, ClosedWhileIdle
from inference.client.errors import ClientError, NotAnswered, NotReached, Problem

#: Longest silence of a server, where the caller sets no limit: above the limits that services have.
SILENCE_SECONDS = 600.0
#: Bytes of the body that are sent at once.
PIECE_BYTES = 1 << 16


class Broken(Exception):
    """One attempt brought no answer.

    Args:
        error: what the caller gets to see when there is no further attempt.
        again: whether it is certain that nothing was computed.
        stale: whether a kept connection turned out to be closed.
    """

    def __init__(self, error: ClientError, *, again: bool = False, stale: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again
        self.stale = stale


@dataclass(frozen=True)
class Form:
    """A body of ``multipart/form-data``."""

    data: bytes
    content_type: str

    @classmethod
    def of(cls, field: str, name: str, data: bytes) -> Form:
        """Put a file into a form."""
        return cls(*encode_multipart_formdata({field: (name, data, "application/octet-stream")}))


class Attempt:
    """Sends requests to one address, over connections that are kept.

    Args:
        address: where to.
        connect_seconds: longest wait for a connection, and for each piece of the body to be taken.
        headers: headers of each request.
        connections: how many are kept.
    """

    def __init__(self, address: Address, connect_seconds: float, headers: Mapping[str, str], connections: int) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._headers = {"User-Agent": "inference-client", "Accept": "application/json", **address.headers, **headers}
        self._pool = address.pool(connections)

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.close()

    def __call__(self, form: Form, request_id: str, deadline: float | None) -> bytes:
        """Send a form and give the body of the answer.

        Args:
            form: the body.
            request_id: the call's id.
            deadline: instant of :func:`time.monotonic` after which nobody waits for the answer.

        Raises:
            Problem: the status is not 200.
            Broken: there was no whole answer.
        """
        try:
            response = self._send(form, request_id, deadline)
            body = b"".join(_pieces_of(response, deadline))
        except (HTTPError, TimeoutError) as error:
            raise self._broken(error, request_id, deadline) from error
        if response.status != HTTPStatus.OK:
            raise _problem(response, body, request_id)
        return body

    def _send(self, form: Form, request_id: str, deadline: float | None) -> BaseHTTPResponse:
        headers = {
            **self._headers,
            "X-Request-ID": request_id,
            "Content-Type": form.content_type,
            "Content-Length": str(len(form.data)),
        }
        left = SILENCE_SECONDS
        if deadline is not None:
            left = max(deadline - time.monotonic(), 0.001)
            headers["X-Request-Deadline-Ms"] = str(max(round(left * 1000.0), 1))
        return self._pool.urlopen(
            "POST",
            self._address.target,
            _pieces(form.data, deadline),
            headers,
            redirect=False,
            timeout=Timeout(connect=min(self._connect_seconds, left), read=left),
            preload_content=False,
        )

    def _broken(self, error: HTTPError | TimeoutError, request_id: str, deadline: float | None) -> Broken:
        where = self._address.shown
        if isinstance(error, SSLError):
            return Broken(NotReached(f"{where}: no TLS connection: {error}", request_id))
        if isinstance(error, NewConnectionError | ConnectTimeoutError):
            if deadline is not None and time.monotonic() >= deadline:
                return Broken(NotReached(f"{where}: no connection within the timeout", request_id))
            why = _reason(error)
            advice = "check the address, and on the controller of the fleet `./fleet status`"
            return Broken(NotReached(f"{where}: no connection: {why}; {advice}", request_id), again=True)
        if deadline is not None and time.monotonic() >= deadline:
            return Broken(NotAnswered(f"{where}: no whole answer within the timeout", request_id))
        cause = error.args[1] if len(error.args) > 1 else error
        stale = isinstance(cause, ClosedWhileIdle)
        return Broken(NotAnswered(f"{where}: no whole answer: {cause}", request_id), stale=stale)


def _reason(error: BaseException) -> str:
    """Say in words of the system why there is no connection, without urllib3's own around them."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "timed out" if isinstance(error, ConnectTimeoutError) else str(error)


def _pieces(data: bytes, deadline: float | None) -> Iterator[bytes]:
    """Cut a body up: the time for a send counts for one piece, and the caller's limit is looked at between them."""
    for begin in range(0, len(data), PIECE_BYTES):
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError("the timeout ended while the body was sent")
        yield data[begin : begin + PIECE_BYTES]


def _pieces_of(response: BaseHTTPResponse, deadline: float | None) -> Iterator[bytes]:
    """Read an answer so that one that comes drop by drop does not outlast the caller's limit."""
    while True:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                response.close()
                raise TimeoutError("the timeout ended while the answer was read")
            if sock := getattr(response.connection, "sock", None):
                sock.settimeout(left)
        piece = response.read1(PIECE_BYTES)
        if not piece:
            response.release_conn()
            return
        yield piece


def _problem(response: BaseHTTPResponse, body: bytes, request_id: str) -> Problem:
    members: Any = None
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/problem+json":
        try:
            members = json.loads(body)
        except ValueError:
            members = None
    if not isinstance(members, dict):
        # From something else on the way, such as a proxy.
        location = response.headers.get("Location")
        text = " ".join(body[:300].decode(errors="replace").split())
        members = {"title": response.reason or "", "detail": f"it leads to {location}" if location else text}
    return Problem(response.status, members, request_id, _retry_after(response))


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds until the server wants to be asked again; it says so in seconds or as a date."""
    header = response.headers.get("Retry-After")
    if header is None:
        return None
    try:
        return Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return None
