"""Turn every error into ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound as WerkzeugNotFound

from inference.errors import BodyTooLarge, MethodNotAllowed, NotFound, Problem

#: Start of every problem's ``type``. A URN, because there is no page to look at behind it.
TYPE_PREFIX = "urn:inference-fleet:problem:"

_log = logging.getLogger(__name__)


def respond(status: int, title: str, slug: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Write one problem as a response; needs the request's context."""
    g.problem = slug
    members = {
        "type": TYPE_PREFIX + slug,
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": g.request_id,
    }
    return Response(json.dumps(members), status, headers, content_type="application/problem+json")


def _from_problem(problem: Problem) -> Response:
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    return respond(problem.status, problem.title, problem.slug, problem.detail, headers)


def _from_http(error: HTTPException) -> Response:
    """Errors that Flask and Werkzeug raise by themselves."""
    if error.response is not None or error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return error.get_response()  # type: ignore[return-value]
    if isinstance(error, WerkzeugNotFound):
        return _from_problem(NotFound(f"There is nothing at {request.path[:200]!r}."))
    if isinstance(error, WerkzeugMethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        response = _from_problem(
            MethodNotAllowed(f"{request.method[:20]} is not allowed here; allowed are {allowed or 'none'}.")
        )
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, RequestEntityTooLarge):
        return _from_problem(BodyTooLarge())
    slug = re.sub(r"[^a-z0-9]+", "-", error.name.lower()).strip("-")
    return respond(error.code, error.name, slug, error.description or error.name)


def _from_bug(error: Exception) -> Response:
    """Anything else: the log has the traceback, the client has the id to find it."""
    _log.error("request_failed", exc_info=error)
    return _from_problem(Problem("The server failed on this request; its log has the reason under the request id."))


def register(app: Flask) -> None:
    """Answer every error of ``app`` with a problem."""
    app.register_error_handler(Problem, _from_problem)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _from_bug)
