"""Turn every error into ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

import msgspec
from flask import Flask, Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound as WerkzeugNotFound

from inference.answers import ProblemDetails
from inference.errors import BodyTooLarge, MethodNotAllowed, NotFound, Problem
from inference.lifecycle import Exchange, current

#: Start of every problem's ``type``. A URN, because there is no page to look at behind it.
TYPE_PREFIX = "urn:inference-fleet:problem:"

_log = logging.getLogger(__name__)


def response_to(error: Exception, exchange: Exchange) -> Response:
    """Write the answer to a request that failed, and the log's line about it when it is a bug."""
    if isinstance(error, Problem):
        return _from_problem(error, exchange)
    if isinstance(error, HTTPException):
        return _from_http(error, exchange)
    # Anything else: the log has the traceback, the client has the id to find it.
    _log.error("request_failed", exc_info=error)
    text = "The server failed on this request; its log has the reason under the request id."
    return _from_problem(Problem(text), exchange)


def _respond(
    exchange: Exchange, status: int, title: str, slug: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    exchange.problem = slug
    members = ProblemDetails(TYPE_PREFIX + slug, title, status, detail, exchange.request_id)
    text = msgspec.json.encode(members)
    return Response(text, status, headers, content_type="application/problem+json")


def _from_problem(problem: Problem, exchange: Exchange) -> Response:
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    return _respond(exchange, problem.status, problem.title, problem.slug, problem.detail, headers)


def _from_http(error: HTTPException, exchange: Exchange) -> Response:
    """Errors that Flask and Werkzeug raise by themselves."""
    if error.response is not None or error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return error.get_response()  # type: ignore[return-value]
    if isinstance(error, WerkzeugNotFound):
        return _from_problem(NotFound(f"There is nothing at {exchange.path[:200]!r}."), exchange)
    if isinstance(error, WerkzeugMethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{exchange.method[:20]} is not allowed here; allowed are {allowed or 'none'}."
        response = _from_problem(MethodNotAllowed(detail), exchange)
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, RequestEntityTooLarge):
        return _from_problem(BodyTooLarge(), exchange)
    slug = re.sub(r"[^a-z0-9]+", "-", error.name.lower()).strip("-")
    return _respond(exchange, error.code, error.name, slug, error.description or error.name)


def register(app: Flask) -> None:
    """Answer every error of what Flask itself serves with a problem."""

    @app.errorhandler(Exception)
    def answer(error: Exception) -> Response:
        return response_to(error, current())
