"""A model that answers with what it was sent; for trying out a fleet without a real one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType
from werkzeug.http import parse_options_header

from inference.description import Body, Description
from inference.errors import ConfigError, UnreadableInput
from inference.model import Model, ModelContext, Sample
from inference.models.reading import check_names, parse_json


class Echo(Struct, frozen=True):
    """What was sent."""

    echo: Annotated[
        Any, Meta(description="JSON as JSON, text as text, and of anything else its length `bytes` and its `sha256`.")
    ]
    suffix: Annotated[str, Meta(description="The option `suffix`, where what was sent is no text.")] | UnsetType = UNSET


class EchoModel(Model[Any, Any]):
    """Echo JSON as JSON, text as text, and of anything else its length and digest.

    Options:
        delay_ms: time each request takes, in milliseconds; default 0.
        suffix: text put behind echoed text, and given as the member ``suffix`` otherwise; default empty.
    """

    name: ClassVar[str] = "echo"
    uses_torch: ClassVar[bool] = False

    _delay_seconds = 0.0
    _suffix = ""

    def prepare(self, context: ModelContext) -> None:
        """Read the options.

        Raises:
            ConfigError: an option is unknown or has a bad value.
        """
        check_names(context.options, ("delay_ms", "suffix"))
        delay = context.options.get("delay_ms", 0)
        if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay <= 3_600_000:
            raise ConfigError(f"option delay_ms={delay!r}: must be a number of milliseconds from 0 to 3600000")
        suffix = context.options.get("suffix", "")
        if not isinstance(suffix, str):
            raise ConfigError(f"option suffix={suffix!r}: must be a string")
        self._delay_seconds = delay / 1000.0
        self._suffix = suffix

    def setup(self, context: ModelContext) -> None:
        """Do nothing: there are no weights."""

    def decode(self, body: bytes, content_type: str) -> Any:
        """Read JSON and text by their media type; take everything else as bytes.

        Raises:
            UnreadableInput: the body is not what its media type says.
        """
        mimetype, parameters = parse_options_header(content_type)
        mimetype = mimetype.lower()
        if mimetype == "application/json" or mimetype.endswith("+json"):
            return _sendable(parse_json(body))
        if mimetype.startswith("text/"):
            charset = parameters.get("charset", "utf-8")
            try:
                return body.decode(charset) + self._suffix
            except (LookupError, UnicodeDecodeError) as error:
                raise UnreadableInput(f"The body is not text in {charset!r:.40}.") from error
        return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Give the inputs back after the delay."""
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        return list(inputs)

    def encode(self, output: Any) -> dict[str, Any]:
        """Answer with the member ``echo``."""
        if self._suffix and not isinstance(output, str):
            return {"echo": output, "suffix": self._suffix}
        return {"echo": output}

    def sample(self) -> Sample:
        """Give a short JSON body."""
        return Sample(b'{"hello": ["world", 1]}', "application/json", {"echo": {"hello": ["world", 1]}})

    def describe(self) -> Description:
        """Give the kinds of bodies that are told apart."""
        return Description(
            summary="Get back what you send",
            bodies=[
                Body("application/json", {}, {"hello": ["world", 1]}),
                Body("text/plain", {"type": "string", "minLength": 1}, "hello"),
                Body("application/octet-stream"),
            ],
            answer=Echo,
            problems=(),
        )


def _sendable(value: Any) -> Any:
    """Refuse the two things that JSON can bring in but not out: numbers over a float's range and half a character."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UnreadableInput(f"The JSON cannot be echoed: {error}.") from error
    return value
