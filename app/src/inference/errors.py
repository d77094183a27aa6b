"""Errors that a client sees, one class per HTTP status, as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

from typing import ClassVar


class Problem(Exception):
    """Base of every error that has an HTTP answer.

    Args:
        detail: one sentence for the client: what is wrong and the value seen.
        retry_after: seconds after which a retry makes sense; sent as ``Retry-After``.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal Server Error"
    #: Last part of the problem's ``type``; stable, so that clients may switch on it.
    slug: ClassVar[str] = "internal-error"

    def __init__(self, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after


class UnreadableInput(Problem):
    """400: the body is empty, truncated or damaged."""

    status = 400
    title = "Unreadable Input"
    slug = "unreadable-input"


class NotFound(Problem):
    """404: no such route."""

    status = 404
    title = "Not Found"
    slug = "not-found"


class MethodNotAllowed(Problem):
    """405: the route exists, but not with this method."""

    status = 405
    title = "Method Not Allowed"
    slug = "method-not-allowed"


class LengthRequired(Problem):
    """411: the body came in chunks of unknown length, which this server cannot read safely."""

    status = 411
    title = "Length Required"
    slug = "length-required"


class BodyTooLarge(Problem):
    """413: the body is over the limit in bytes."""

    status = 413
    title = "Body Too Large"
    slug = "body-too-large"


class UnsupportedInput(Problem):
    """415: the body is not of a kind the model reads."""

    status = 415
    title = "Unsupported Input"
    slug = "unsupported-input"


class TooManyPixels(Problem):
    """422: the image is well formed, but larger than the limit in pixels."""

    status = 422
    title = "Too Many Pixels"
    slug = "too-many-pixels"


class ClientLeft(Problem):
    """499, nginx's number for it: the client closed its connection, so nobody will see this answer."""

    status = 499
    title = "Client Left"
    slug = "client-left"


class Busy(Problem):
    """503: no capacity just now; carries ``Retry-After``."""

    status = 503
    title = "Busy"
    slug = "busy"


class NotReady(Problem):
    """503: this worker's last inference with a known answer failed; carries ``Retry-After``."""

    status = 503
    title = "Not Ready"
    slug = "not-ready"


class OverTime(Problem):
    """504: the answer was not ready before the request's deadline."""

    status = 504
    title = "Over Time"
    slug = "over-time"


class ModelFailed(Exception):
    """The model failed on a request, in the model process; its log has the traceback under the request's id."""


class ArtifactError(Exception):
    """A file of the release is missing or damaged: the worker must not start."""


class ConfigError(Exception):
    """A setting of the service or of its model is wrong: the worker must not start."""


class SampleError(Exception):
    """The model's answer to its own sample is not the known one: the worker must not serve."""


class ModelProcessError(Exception):
    """The model process did not start: the web worker must not start either."""
