"""The route that describes the others: ``/openapi.json``."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response


def create(document: dict[str, Any]) -> Blueprint:
    """Make the blueprint of ``/openapi.json``.

    Args:
        document: the description, see :func:`inference.openapi.document`.
    """
    blueprint = Blueprint("api", __name__)
    text = msgspec.json.encode(document)

    @blueprint.get("/openapi.json")
    def describe() -> Response:
        """Give the OpenAPI document of this service."""
        return Response(text, content_type="application/json")

    return blueprint
