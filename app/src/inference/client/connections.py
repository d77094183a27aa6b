"""Connections that are kept, and that know when the server closed them while they were idle."""

from __future__ import annotations

import http.client
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import LocationParseError
from urllib3.util import make_headers, parse_url


class ClosedWhileIdle(http.client.RemoteDisconnected):
    """A kept connection turned out to be closed, and not a byte of an answer had come.

    nginx closes idle connections whenever it loads its configuration. A request that is sent at that very moment meets
    a closed connection, and has not been read.
    """


class _Noting(HTTPConnection):
    """A connection that remembers whether it has brought an answer before."""

    _answers = 0

    def connect(self) -> None:
        self._answers = 0
        super().connect()

    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3 itself has it
        try:
            response = super().getresponse()
        except ConnectionError as error:
            if self._answers:
                raise ClosedWhileIdle(str(error)) from error
            raise
        self._answers += 1
        return response


class _NotingTls(_Noting, HTTPSConnection):
    """The same through TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Noting


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _NotingTls


class Address:
    """Where a service is.

    Args:
        url: of the host or edge, such as ``http://localhost:8100``; a path in it goes before the route, a name and a
            password in it become an ``Authorization`` header.
        route: the service's route.

    Raises:
        ValueError: the URL or the route is none.
    """

    def __init__(self, url: str, route: str) -> None:
        try:
            parts = parse_url(url)
        except LocationParseError:
            parts = parse_url("")
        if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
            raise ValueError(f"url {url!r}: must be like http://localhost:8100 or https://ocr.example.com")
        if not route.startswith("/"):
            raise ValueError(f"route {route!r}: must begin with /, such as /v1/parse")
        self._tls = parts.scheme == "https"
        self._host = parts.host
        self._port = parts.port
        #: What is asked for on the server.
        self.target = (parts.path or "").rstrip("/") + route
        #: The same as people write it, without a password.
        self.shown = parts._replace(auth=None, path=self.target).url
        #: Headers that the URL asks for.
        self.headers: dict[str, str] = make_headers(basic_auth=parts.auth) if parts.auth else {}

    def pool(self, connections: int) -> HTTPConnectionPool:
        """Make a pool that keeps so many connections."""
        settings: dict[str, Any] = {"maxsize": connections, "retries": False}
        if self._tls:
            return _TlsPool(self._host, self._port, **settings)
        return _Pool(self._host, self._port, **settings)
