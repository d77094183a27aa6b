"""The service's one route: ``POST`` an input, get the model's answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Blueprint
from flask.json.provider import DefaultJSONProvider

from inference import problems
from inference.body import read_input
from inference.config import Config
from inference.errors import UnreadableInput
from inference.lifecycle import Exchange, timing_of
from inference.runner import ModelRunner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from inference.metrics import Metrics

DEADLINE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def allowed_seconds(header: str | None, config: Config) -> float:
    """Time that a request may take: the service's, or what ``X-Request-Deadline-Ms`` says if that is less.

    Raises:
        UnreadableInput: the header is no number of milliseconds.
    """
    if header is None:
        return config.timeout_seconds
    if not DEADLINE.fullmatch(header):
        raise UnreadableInput(
            f"X-Request-Deadline-Ms {header!r:.40} is not a number of milliseconds, such as 1500 or 250.5."
        )
    return min(config.timeout_seconds, float(header) / 1000.0)


class Service:
    """The route as a WSGI application: what Flask would do for it costs more than everything else does.

    Args:
        config: the settings.
        runner: the model.
        metrics: where requests are counted, if anywhere.
    """

    def __init__(self, config: Config, runner: ModelRunner, metrics: Metrics | None) -> None:
        self._config = config
        self._metrics = metrics
        self._runner = runner
        # As Flask's jsonify writes it, by an encoder that is made once.
        self._encode = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=DefaultJSONProvider.default
        ).encode
        place = {"model": {"name": runner.model_name, "release": config.release}, "device": config.device}
        #: Members that are the same in each answer.
        self._place = self._encode(place)[1:-1]

    def is_for(self, environ: WSGIEnvironment) -> bool:
        """Whether a request is one for the model."""
        return environ.get("PATH_INFO") == self._config.route and environ["REQUEST_METHOD"] == "POST"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        exchange = Exchange(environ, self._config.max_body_bytes, self._metrics)
        try:
            payload = self._answer(environ, exchange).encode()
        except Exception as error:  # noqa: BLE001 - a model may raise whatever it likes
            response = problems.response_to(error, exchange)
            response.headers.update(exchange.headers())
            exchange.finish(response.status_code, response.content_length)
            return response(environ, start_response)
        else:
            exchange.finish(200, len(payload))
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
            start_response("200 OK", headers + exchange.headers())
            return [payload]
        finally:
            exchange.forget()

    def _answer(self, environ: WSGIEnvironment, exchange: Exchange) -> str:
        allowed = allowed_seconds(environ.get("HTTP_X_REQUEST_DEADLINE_MS"), self._config)
        deadline = exchange.started - exchange.queue + allowed
        data, content_type = read_input(exchange.body, environ.get("CONTENT_TYPE", ""), self._runner.field)
        read = time.monotonic()
        result = self._runner.answer(data, content_type, deadline)
        queue, decode = exchange.queue + result.waited, read - exchange.started + result.decode
        exchange.stages = queue, decode, result.compute, exchange.total
        timing = timing_of(queue=queue, decode=decode, compute=result.compute, total=exchange.stages[-1])
        exchange.timing = timing if result.batch is None else f'{timing[:-1]},"batch":{result.batch}}}'
        members = self._encode(result.members)[1:-1]
        return (
            f'{{"request_id":"{exchange.request_id}",{self._place},'
            f'{members}{members and ","}"timing_ms":{exchange.timing}}}\n'
        )


def create(config: Config) -> Blueprint:
    """Make the blueprint that tells Flask of the route, for OPTIONS and 405; its POST does not get that far."""
    blueprint = Blueprint("service", __name__)
    blueprint.add_url_rule(config.route, "answer", methods=["POST"])
    return blueprint
