"""What the built-in models share: checking options and reading JSON bodies."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from inference.errors import ConfigError, UnreadableInput


def check_names(given: Mapping[str, Any], allowed: Iterable[str], where: str = "option") -> None:
    """Refuse names that nobody reads.

    Raises:
        ConfigError: a name is unknown; the message has the nearest one that is known.
    """
    known = sorted(allowed)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}"
            raise ConfigError(f"{where} {name!r}: no such name; {hint}")


def parse_json(body: bytes) -> Any:
    """Parse a body as strict JSON in UTF-8.

    Raises:
        UnreadableInput: the body is not JSON, has NaN or Infinity, or is nested too deep.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise UnreadableInput(f"The body is not JSON: {error}.") from error
    except RecursionError:
        raise UnreadableInput("The JSON is nested too deep.") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
