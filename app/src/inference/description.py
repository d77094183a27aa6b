"""What a model may say about itself, for the description of the API: its inputs, its answer, its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.errors import Problem, TooManyPixels, UnsupportedInput

#: A class with typed fields (dataclass, TypedDict, msgspec.Struct) or a JSON Schema.
Schema = type | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """One kind of body that a model reads.

    Attributes:
        media_type: such as ``image/png``.
        schema: what a JSON or text body must look like; None for bytes.
        example: a JSON or text body that is answered with 200; None for bytes.
    """

    media_type: str
    schema: Schema | None = None
    example: Any = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a model may say about itself; the defaults are for one that says nothing.

    Attributes:
        summary: what the model does, in a few words.
        text: more about it, for people.
        bodies: kinds of bodies that the model reads; the same kinds may come as the form's field.
        answer: the members that :meth:`~inference.model.Model.encode` gives, as a class with typed fields or as the
            JSON Schema of an object with ``properties``; None when they are not known.
        example: members of a real answer; None for what the sample must give.
        problems: errors that the model raises by itself, beside UnreadableInput.
    """

    summary: str = "Ask the model"
    text: str = ""
    bodies: Sequence[Body] = field(default=(Body("application/octet-stream"),))
    answer: Schema | None = None
    example: Mapping[str, Any] | None = None
    problems: Sequence[type[Problem]] = (UnsupportedInput, TooManyPixels)
