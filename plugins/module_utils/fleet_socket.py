"""Speak with a vassal: requests over the uwsgi protocol or HTTP, and its stats, on Unix sockets or loopback ports."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass


class SocketError(Exception):
    """The other side is not there, or does not speak as it should."""


@dataclass(frozen=True)
class Answer:
    """A response: status, headers with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        """The body as JSON; an empty dict when it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def connect(address: str, timeout: float) -> socket.socket:
    """Connect to ``/path.sock`` or ``host:port``.

    Raises:
        SocketError: nobody listens there.
    """
    try:
        if address.startswith("/"):
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(timeout)
            try:
                # 107 bytes is the longest path that a socket may have.
                link.connect(address)
            except OSError:
                link.close()
                raise
            return link
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout)
    except OSError as error:
        raise SocketError(f"{address}: {error}") from error


def read_all(link: socket.socket) -> bytes:
    """Read until the other side closes."""
    parts = []
    while chunk := link.recv(65536):
        parts.append(chunk)
    return b"".join(parts)


def stats(address: str, timeout: float = 5) -> dict:
    """The stats of a vassal or an emperor.

    Raises:
        SocketError: nobody listens, or it is no JSON.
    """
    try:
        with connect(address, timeout) as link:
            found: dict = json.loads(read_all(link))
            return found
    except (OSError, ValueError) as error:
        raise SocketError(f"{address}: {error}") from error


def uwsgi_packet(variables: dict[str, str]) -> bytes:
    """Header and variables of a WSGI request in the uwsgi protocol (modifier1 0)."""
    block = b""
    for name, value in variables.items():
        for part in (name.encode(), value.encode()):
            block += struct.pack("<H", len(part)) + part
    return struct.pack("<BHB", 0, len(block), 0) + block


def split_response(raw: bytes) -> Answer:
    """Take an HTTP response apart that ends with the connection.

    Raises:
        SocketError: it is empty or has no status line.
    """
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise SocketError(f"no HTTP response, but {raw[:80]!r}")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(parts[1]), headers, body)


def request(
    address: str,
    protocol: str,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    timeout: float = 30,
) -> Answer:
    """Send one request to a vassal, past nginx.

    Args:
        address: ``/path.sock`` or ``host:port``.
        protocol: ``uwsgi`` or ``http``.
        timeout: seconds for each step.

    Raises:
        SocketError: no connection, no answer in time, or no valid answer.
    """
    headers = headers or {}
    try:
        with connect(address, timeout) as link:
            if protocol == "http":
                lines = [f"{method} {path} HTTP/1.0", "Host: fleet", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                link.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            else:
                where, _, query = path.partition("?")
                variables = {
                    "REQUEST_METHOD": method, "REQUEST_URI": path, "PATH_INFO": where, "QUERY_STRING": query,
                    "SCRIPT_NAME": "", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "fleet", "SERVER_PORT": "80",
                    "REMOTE_ADDR": "127.0.0.1", "CONTENT_LENGTH": str(len(body)),
                }  # fmt: skip
                for name, value in headers.items():
                    key = name.upper().replace("-", "_")
                    variables[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
                link.sendall(uwsgi_packet(variables) + body)
            return split_response(read_all(link))
    except OSError as error:
        raise SocketError(f"{address}: {error}") from error


def stats_path(run_dir: str, device: str, name: str) -> str:
    """Where the stats socket of a vassal is."""
    return f"{run_dir}/{device}/{name}.stats"


def mismatch(found: object, expected: object, where: str = "") -> str:
    """Say how ``found`` differs from what is expected of it; an expected dict may leave keys out.

    Returns:
        An empty string when all is as expected.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return f"{where or 'answer'} is {found!r}, expected an object"
        for key, value in expected.items():
            if key not in found:
                return f"{where}{key} is missing"
            if difference := mismatch(found[key], value, f"{where}{key}."):
                return difference
        return ""
    return "" if found == expected else f"{where.rstrip('.')} is {found!r}, expected {expected!r}"
