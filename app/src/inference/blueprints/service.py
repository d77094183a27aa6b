"""The service's one route: ``POST`` an input, get the model's answer."""

from __future__ import annotations

import time

from flask import Blueprint, Response, g, jsonify, request

from inference.body import read_input
from inference.config import Config
from inference.lifecycle import milliseconds
from inference.runner import Runner


def create(config: Config, runner: Runner) -> Blueprint:
    """Make the blueprint of ``config.route``."""
    blueprint = Blueprint("service", __name__)
    model = {"name": runner.model_name, "release": config.release}

    @blueprint.post(config.route)
    def answer() -> Response:
        deadline = g.started + config.timeout_seconds - g.queue
        data, content_type = read_input(g.body, request.headers.get("Content-Type", ""), runner.field)
        read = time.monotonic()
        result = runner.answer(data, content_type, deadline)
        g.timing_ms = {
            "queue": milliseconds(g.queue + result.waited),
            "decode": milliseconds(read - g.started + result.decode),
            "compute": milliseconds(result.compute),
            "total": milliseconds(g.queue + time.monotonic() - g.started),
        }
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
