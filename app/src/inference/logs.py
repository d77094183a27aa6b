"""JSON lines on stderr: one object a line, one line a request.

Bodies, headers and query strings are never logged: they may hold private data.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    # In Python 3.10 it takes no type.
    _Handler = logging.StreamHandler

#: Write text as JSON.
quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii

#: Id of the request this thread works on; every log line of the request carries it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@functools.lru_cache(maxsize=2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(seconds: float) -> str:
    """Write seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    milliseconds = int(seconds * 1000)
    # Requests come by the thousand in a second, and the text of one second is the same for all of them.
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


class JsonFormatter(logging.Formatter):
    """Write a record as one JSON object.

    The message becomes ``event``; a dict given as ``extra={"facts": {...}}`` adds its members, and so does ``members``,
    which is JSON already.

    Args:
        constants: members of every line, such as the service and the device.
    """

    def __init__(self, constants: dict[str, str] | None = None) -> None:
        super().__init__()
        # A fact that JSON cannot express is still better logged as text than lost.
        self._encode = json.JSONEncoder(default=str).encode
        self._constants = self._members(constants or {})

    def format(self, record: logging.LogRecord) -> str:
        """Write ``record`` as one line."""
        facts: dict[str, object] = {"request_id": request_id.get(), **getattr(record, "facts", {})}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        members = getattr(record, "members", "")
        # The members that every line has are put together as text: there is a line for each request.
        return (
            f'{{"time": "{timestamp(record.created)}", "level": "{record.levelname.lower()}", '
            f'"event": {quoted(record.getMessage())}, "logger": "{record.name}"'
            f"{self._constants}{self._members(facts)}{members and ', '}{members}}}"
        )

    def _members(self, members: Mapping[str, object]) -> str:
        """Members as they stand behind others, without those that are not known."""
        known = {name: value for name, value in members.items() if value is not None}
        return f", {self._encode(known)[1:-1]}" if known else ""


class LineHandler(_Handler):
    """Write each record as one line, in one piece; a handler of all records, with less around it than logging's own."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Write ``record``."""
        try:
            line = self.format(record) + "\n"
            self.acquire()
            try:
                self.stream.write(line)
                self.stream.flush()
            finally:
                self.release()
        except Exception:  # noqa: BLE001 - as in logging's own handlers: a line that cannot be written fails no request
            self.handleError(record)
        return True


def configure(level: str, constants: dict[str, str], stream: TextIO | None = None) -> None:
    """Send all logging and warnings of this process to ``stream`` as JSON lines.

    Args:
        level: lowest level of this package's own lines; libraries are heard from ``warning`` up.
        constants: members of every line.
        stream: where to write; stderr when not given.
    """
    # No line has them, and each record would look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(constants))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("inference").setLevel(level.upper())
    logging.captureWarnings(True)
