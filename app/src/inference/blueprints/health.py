"""Routes for operators and load balancers: alive, ready, which version."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

import msgspec
from flask import Blueprint, Response
from msgspec import UNSET

from inference import logs
from inference.answers import Alive, Ready, Version
from inference.config import Config
from inference.errors import ArtifactError
from inference.runner import ModelRunner


def create(config: Config, runner: ModelRunner) -> Blueprint:
    """Make the blueprint of ``/healthz``, ``/readyz`` and ``/version``.

    Raises:
        ArtifactError: the release's ``REVISION.json`` is damaged.
    """
    blueprint = Blueprint("health", __name__)
    place = {"service": config.service, "device": config.device, "release": config.release}
    revision = _revision(config)

    @blueprint.get("/healthz")
    def healthz() -> Response:
        """The process lives and answers; says nothing of the model."""
        return _respond(Alive(status="alive", **place))

    @blueprint.get("/readyz")
    def readyz() -> Response:
        """The sample has given its known answer in this worker, on this device, not long ago."""
        health = runner.health()
        last = logs.timestamp(health.last_success)
        return _respond(Ready(status="ready", **place, last_success=last, age_seconds=round(health.age, 3)))

    @blueprint.get("/version")
    def version() -> Response:
        """What runs here."""
        return _respond(
            Version(
                **place,
                version=metadata.version("inference"),
                model=runner.model_name,
                mode=config.mode,
                torch_device=runner.torch_device,
                python=platform.python_version(),
                torch=runner.torch_version or UNSET,
                revision=UNSET if revision is None else revision,
            )
        )

    return blueprint


def _respond(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer) + b"\n", content_type="application/json")


def _revision(config: Config) -> dict[str, Any] | None:
    path = config.artifacts.absolute().parent / "REVISION.json"
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ArtifactError(f"{path}: must hold a JSON object, not {type(facts).__name__}")
    # Not the wheels of every kind of host: that is for who reads the file on the host.
    return {key: value for key, value in facts.items() if key != "environments"}
