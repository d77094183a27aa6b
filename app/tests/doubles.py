"""Doubles that the tests share: a model, a log handler and a clock that the test controls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from inference.description import Description
from inference.errors import TooManyPixels, UnreadableInput, UnsupportedInput
from inference.model import Model, ModelContext, Sample


class PuppetModel(Model[bytes, bytes]):
    """A model whose failures the test chooses. It answers with the length of the body."""

    name: ClassVar[str] = "puppet"
    field: ClassVar[str] = "thing"
    uses_torch: ClassVar[bool] = False

    def __init__(self) -> None:
        self.context: ModelContext | None = None
        self.failure: Exception | None = None
        self.delay_seconds = 0.0
        self.predicted: list[bytes] = []
        self.content_types: list[str] = []

    def setup(self, context: ModelContext) -> None:
        self.context = context

    def decode(self, body: bytes, content_type: str) -> bytes:
        self.content_types.append(content_type)
        if body == b"unreadable":
            raise UnreadableInput("It says so itself.")
        return body

    def predict(self, inputs: Sequence[bytes]) -> list[bytes]:
        time.sleep(self.delay_seconds)
        self.predicted.extend(inputs)
        if self.failure is not None:
            raise self.failure
        return list(inputs)

    def encode(self, output: bytes) -> dict[str, Any]:
        return {"length": len(output)}

    def sample(self) -> Sample:
        return Sample(b"sample", "text/plain", {"length": 6})

    def describe(self) -> Description:
        length = {"type": "integer", "minimum": 0}
        return Description(
            summary="Count bytes",
            answer={"type": "object", "properties": {"length": length}, "required": ["length"]},
            problems=[UnsupportedInput, TooManyPixels],
        )


class LogLines(logging.Handler):
    """Collect log records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def facts(self, event: str) -> list[dict[str, Any]]:
        """Give the facts of all lines of one event."""
        return [getattr(record, "facts", {}) for record in self.records if record.getMessage() == event]


@dataclass
class Clock:
    """What ``time.monotonic`` gives to the runner: the real time and what the test adds."""

    ahead: float = 0.0
    real: Callable[[], float] = field(default=time.monotonic)

    def __call__(self) -> float:
        return self.real() + self.ahead
