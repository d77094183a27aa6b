"""The service's one route: ``POST`` an input, get the model's answer."""

from __future__ import annotations

import re
import time

from flask import Blueprint, Response, g, jsonify, request

from inference.body import read_input
from inference.config import Config
from inference.errors import UnreadableInput
from inference.lifecycle import milliseconds
from inference.runner import ModelRunner

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


def create(config: Config, runner: ModelRunner) -> Blueprint:
    """Make the blueprint of ``config.route``."""
    blueprint = Blueprint("service", __name__)
    model = {"name": runner.model_name, "release": config.release}

    @blueprint.post(config.route)
    def answer() -> Response:
        deadline = g.started - g.queue + allowed_seconds(request.headers.get("X-Request-Deadline-Ms"), config)
        data, content_type = read_input(g.body, request.headers.get("Content-Type", ""), runner.field)
        read = time.monotonic()
        result = runner.answer(data, content_type, deadline)
        g.timing_ms = {
            "queue": milliseconds(g.queue + result.waited),
            "decode": milliseconds(read - g.started + result.decode),
            "compute": milliseconds(result.compute),
            "total": milliseconds(g.queue + time.monotonic() - g.started),
        }
        if result.batch is not None:
            g.timing_ms["batch"] = result.batch
        return jsonify(
            {
                "request_id": g.request_id,
                "model": model,
                "device": config.device,
                **result.members,
                "timing_ms": g.timing_ms,
            }
        )

    return blueprint
