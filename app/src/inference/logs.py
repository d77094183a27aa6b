"""JSON lines on stderr: one object a line, one line a request.

Bodies, headers and query strings are never logged: they may hold private data.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TextIO

#: Id of the request this thread works on; every log line of the request carries it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def timestamp(seconds: float) -> str:
    """Write seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """Write a record as one JSON object.

    The message becomes ``event``; a dict given as ``extra={"facts": {...}}`` adds its members.

    Args:
        constants: members of every line, such as the service and the device.
    """

    def __init__(self, constants: dict[str, str] | None = None) -> None:
        super().__init__()
        self._constants = constants or {}

    def format(self, record: logging.LogRecord) -> str:
        """Write ``record`` as one line."""
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "request_id": request_id.get(),
            **self._constants,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # A fact that JSON cannot express is still better logged as text than lost.
        return json.dumps({name: value for name, value in line.items() if value is not None}, default=str)


def configure(level: str, constants: dict[str, str], stream: TextIO | None = None) -> None:
    """Send all logging and warnings of this process to ``stream`` as JSON lines.

    Args:
        level: lowest level of this package's own lines; libraries are heard from ``warning`` up.
        constants: members of every line.
        stream: where to write; stderr when not given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(constants))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("inference").setLevel(level.upper())
    logging.captureWarnings(True)
