"""The answer of an OCR service, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: x and y in pixels of the sent image.
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of text.

    Attributes:
        text: what it says.
        score: how certain that is, 0 to 1.
        box: its four corners, clockwise from the one where the text begins.
    """

    text: str
    score: float
    box: tuple[Point, Point, Point, Point]


@dataclass(frozen=True)
class Timing:
    """Where the server's time went, in milliseconds.

    Attributes:
        queue: until a worker took it, and in mode batch until the device did.
        decode: reading the body and the image.
        compute: the model.
        total: all of it.
        batch: how many requests were computed together; None outside of mode batch.
    """

    queue: float
    decode: float
    compute: float
    total: float
    batch: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the server read in an image.

    Attributes:
        request_id: under it the server's logs have the request.
        model: name of the model.
        release: id of the release that answered.
        device: the device that computed, as the fleet knows it.
        width: of the sent image, in pixels.
        height: of the sent image, in pixels.
        text: the lines, one below the other.
        lines: the lines with their boxes.
        timing_ms: where the time went.
        attempts: how often the request was sent until this answer came.
        members: the whole answer, as the server sent it.
    """

    request_id: str
    model: str
    release: str
    device: str
    width: int
    height: int
    text: str
    lines: tuple[Line, ...]
    timing_ms: Timing
    attempts: int = field(default=1, compare=False)
    members: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, members: Mapping[str, Any], attempts: int = 1) -> Answer:
        """Read an answer.

        Raises:
            KeyError, TypeError, ValueError: it is not of this form.
        """
        timing = members["timing_ms"]
        stages = {name: float(timing[name]) for name in ("queue", "decode", "compute", "total")}
        return cls(
            request_id=str(members["request_id"]),
            model=str(members["model"]["name"]),
            release=str(members["model"]["release"]),
            device=str(members["device"]),
            width=int(members["width"]),
            height=int(members["height"]),
            text=str(members["text"]),
            lines=tuple(_line(line) for line in members["lines"]),
            timing_ms=Timing(**stages, batch=int(timing["batch"]) if "batch" in timing else None),
            attempts=attempts,
            members=members,
        )


def _line(members: Mapping[str, Any]) -> Line:
    corners = [(float(x), float(y)) for x, y in members["box"]]
    first, second, third, fourth = corners
    return Line(str(members["text"]), float(members["score"]), (first, second, third, fourth))
