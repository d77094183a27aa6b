"""Settings of one service on one device, read from ``INFERENCE_*`` environment variables.

The reading is strict: a misspelt name or a bad value stops the worker at the start, where it is
cheap to see, instead of changing its behaviour in silence.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import ConfigError

PREFIX = "INFERENCE_"
ACCELERATORS = ("cpu", "cuda", "auto")
MODES = ("process", "batch")
#: Bytes of a Unix socket's path that Linux takes, without the zero at its end.
MAX_SOCKET_PATH_BYTES = 107
LOG_LEVELS = ("debug", "info", "warning", "error")
#: Routes of the health blueprint; a service may not take them.
RESERVED_ROUTES = ("/healthz", "/readyz", "/version")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the app. Every field ``x`` is set by the variable ``INFERENCE_X``.

    Attributes:
        service: name of the service, shown by health routes and in log lines.
        route: path that answers ``POST``.
        model: the :class:`~inference.model.Model` class as ``module:Class``.
        options: the model's own options.
        artifacts: folder with the model's files.
        release: id of the release this code and these artifacts belong to.
        device: name of the device as the fleet knows it, such as ``gpu0``.
        accelerator: ``cpu``, ``cuda`` (refuse to start without it) or ``auto`` (CUDA if there is one).
        threads: CPU threads torch may use in the process that computes.
        mode: ``process`` (every worker of the server has the model and computes one request at a time) or
            ``batch`` (the workers hand requests to one model process, which computes many together).
        channel: path of the Unix socket between web workers and model process; needed in mode batch.
        batch_max_items: most requests computed together.
        batch_max_cost: largest sum of :meth:`~inference.model.Model.cost` computed together; 0 = no bound. One
            request over it is computed alone.
        batch_delay_ms: milliseconds that a request waits for company while the device is free.
        queue_max_items: requests that may wait for the device beyond the batch being computed; more are
            refused with 503.
        max_body_bytes: larger request bodies are refused with 413.
        max_pixels: images with more pixels are refused with 422.
        timeout_seconds: time a request may take from nginx's hand-over until its compute starts; a
            worker stuck for twice this long ends its process.
        metrics: folder in which the processes of a vassal keep their counts and times; none are kept without it.
        ready_seconds: age after which ``/readyz`` does not trust the last good inference any more.
        log_level: lowest level that is logged.
    """

    service: str = "ocr"
    route: str = "/v1/parse"
    model: str = "inference.models.ocr:OcrModel"
    options: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Path = Path("models")
    release: str = "unreleased"
    device: str = "cpu0"
    accelerator: str = "auto"
    threads: int = 1
    mode: str = "process"
    channel: Path | None = None
    batch_max_items: int = 32
    batch_max_cost: int = 0
    batch_delay_ms: float = 0.0
    queue_max_items: int = 64
    max_body_bytes: int = 104_857_600
    max_pixels: int = 50_000_000
    timeout_seconds: float = 60.0
    ready_seconds: float = 30.0
    log_level: str = "info"
    metrics: Path | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Config:
        """Read the settings from environment variables; other names than ``INFERENCE_*`` are ignored.

        Raises:
            ConfigError: unknown names or bad values; the message has one line for each of them.
        """
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for name in sorted(environ):
            if not name.startswith(PREFIX):
                continue
            reader = _READERS.get(name)
            if reader is None:
                # The prefix, which all names share, would make every two of them look alike.
                known = [other.removeprefix(PREFIX) for other in _READERS]
                near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
                hint = f"did you mean {PREFIX}{near[0]}?" if near else f"allowed are {', '.join(sorted(_READERS))}"
                wrong.append(f"{name}={environ[name]!r}: no such setting; {hint}")
                continue
            try:
                values[name.removeprefix(PREFIX).lower()] = reader(environ[name])
            except ValueError as error:
                wrong.append(f"{name}={environ[name]!r}: {error}")
        if values.get("mode") == "batch" and "channel" not in values and f"{PREFIX}CHANNEL" not in environ:
            wrong.append(f"{PREFIX}MODE='batch': set {PREFIX}CHANNEL to the path of the model process's socket")
        if wrong:
            raise ConfigError("\n".join(wrong))
        return cls(**values)


def _matching(pattern: str, meaning: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}")
        return value

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return read


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        # int() alone would also take " 1_000 " and other alphabets' digits.
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return int(value)

    return read


def _number(low: float, high: float, unit: str = "seconds") -> Callable[[str], float]:
    def read(value: str) -> float:
        message = f"must be a number of {unit} from {low:g} to {high:g}"
        try:
            number = float(value)
        except ValueError:
            raise ValueError(message) from None
        if not math.isfinite(number) or not low <= number <= high:
            raise ValueError(message)
        return number

    return read


def _route(value: str) -> str:
    value = _matching(r"(/[A-Za-z0-9._~-]+)+", "a path such as /v1/parse, without a slash at its end")(value)
    if value in RESERVED_ROUTES:
        raise ValueError(f"must not be one of {', '.join(RESERVED_ROUTES)}: they answer about health")
    return value


def _json_object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object, not {type(found).__name__}")
    return found


def _path(value: str) -> Path:
    if not value:
        raise ValueError("must be the path of a folder")
    return Path(value)


def _socket_path(value: str) -> Path:
    size = len(os.fsencode(value))
    if not value.startswith("/") or size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must be an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes; it has {size}")
    return Path(value)


_NAME = _matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", "1 to 128 letters, digits and . _ + -, a letter or digit first")

_READERS: dict[str, Callable[[str], Any]] = {
    "INFERENCE_SERVICE": _NAME,
    "INFERENCE_ROUTE": _route,
    "INFERENCE_MODEL": _matching(r"\w+(\.\w+)*:\w+", "module:Class, such as inference.models.ocr:OcrModel"),
    "INFERENCE_OPTIONS": _json_object,
    "INFERENCE_ARTIFACTS": _path,
    "INFERENCE_RELEASE": _NAME,
    "INFERENCE_DEVICE": _NAME,
    "INFERENCE_ACCELERATOR": _one_of(*ACCELERATORS),
    "INFERENCE_THREADS": _integer(1, 1024),
    "INFERENCE_MODE": _one_of(*MODES),
    "INFERENCE_CHANNEL": _socket_path,
    "INFERENCE_BATCH_MAX_ITEMS": _integer(1, 65_536),
    "INFERENCE_BATCH_MAX_COST": _integer(0, 2**50),
    "INFERENCE_BATCH_DELAY_MS": _number(0, 60_000, "milliseconds"),
    "INFERENCE_QUEUE_MAX_ITEMS": _integer(1, 1_000_000),
    "INFERENCE_MAX_BODY_BYTES": _integer(1, 2**40),
    "INFERENCE_MAX_PIXELS": _integer(1, 2**40),
    "INFERENCE_TIMEOUT_SECONDS": _number(0.001, 86_400),
    "INFERENCE_READY_SECONDS": _number(0, 86_400),
    "INFERENCE_LOG_LEVEL": _one_of(*LOG_LEVELS),
    "INFERENCE_METRICS": _path,
}
