"""What can go wrong with a call. Each says what was seen and, where there is one, what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Start of the ``type`` of what the client itself found; problems of the server have their own.
TYPE_PREFIX = "urn:inference-fleet:client:"


class ClientError(Exception):
    """Base of all that a call raises beside ``OSError`` for a file that cannot be read.

    Args:
        detail: one sentence: what is wrong and the value seen.
        request_id: the call's ``X-Request-ID``, under which the server's logs have it too.
    """

    slug: str = "failed"
    title: str = "Failed"

    def __init__(self, detail: str, request_id: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id

    def members(self) -> dict[str, Any]:
        """Give the error in the form of a problem (RFC 9457)."""
        return {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "detail": self.detail,
            "request_id": self.request_id,
        }


class NotReached(ClientError):
    """There was no connection, so nothing was sent: refused, no such host, no route, TLS failed."""

    slug = "not-reached"
    title = "Not Reached"


class NotAnswered(ClientError):
    """The request was sent, or a part of it, and no whole answer came: it may have been computed."""

    slug = "not-answered"
    title = "Not Answered"


class BadAnswer(ClientError):
    """An answer came that is not one of this kind of service."""

    slug = "bad-answer"
    title = "Bad Answer"


class Problem(ClientError):
    """The server refused or failed; it has all members of its ``application/problem+json``.

    Attributes:
        type: what kind of problem, ``urn:inference-fleet:problem:`` and a slug; ``about:blank`` for other servers.
        title: the kind in words.
        status: HTTP status.
        detail: what was wrong with this request.
        request_id: as in the server's logs.
        retry_after: seconds after which the server would be asked again, when it said so.
        extensions: members beside these.
    """

    def __init__(self, status: int, given: Mapping[str, Any], request_id: str, retry_after: float | None) -> None:
        super().__init__(str(given.get("detail", "")), str(given.get("request_id") or request_id))
        self.type = str(given.get("type", "about:blank"))
        self.title = str(given.get("title", ""))
        self.status = status
        self.retry_after = retry_after
        known = {"type", "title", "status", "detail", "request_id"}
        self.extensions = {name: value for name, value in given.items() if name not in known}

    @property
    def slug(self) -> str:  # type: ignore[override]
        """Last part of the type: ``busy``, ``over-time``, ``unreadable-input``; empty for other servers."""
        return "" if self.type == "about:blank" else self.type.rpartition(":")[2]

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.detail}" if self.detail else f"{self.status} {self.title}"

    def members(self) -> dict[str, Any]:
        """Give all members, as the server sent them."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": self.request_id,
            **self.extensions,
        }
