"""A WSGI app that tells how it is run: by whom, with which environment, and what the request brought along."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Start = Callable[[str, list[tuple[str, str]]], object]
LOADED_BY = os.getpid()
if os.environ.get("TINY_CRASH"):
    raise RuntimeError("TINY_CRASH is set")


def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    """Answer with everything there is to know; `?seconds=N` takes as long. A file of its device's name makes it ill."""
    ill = Path(os.environ.get("TINY_ILL", os.devnull)) / os.environ.get("INFERENCE_DEVICE", "")
    if ill.exists():
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"the known answer is wrong"]
    query = environ["QUERY_STRING"]
    if query.startswith("seconds="):
        time.sleep(float(query.removeprefix("seconds=")))
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    answer = {
        "pid": os.getpid(),
        "loaded_by": LOADED_BY,
        "environment": dict(os.environ),
        "optimize": sys.flags.optimize,
        "threads": environ["wsgi.multithread"],
        "request": {name: value for name, value in environ.items() if isinstance(value, str)},
        "bytes": len(body),
        "device": os.environ.get("INFERENCE_DEVICE"),
        "release": os.environ.get("INFERENCE_RELEASE"),
        "answer": os.environ.get("TINY_ANSWER", "42"),
    }
    # As the app does: nginx has to see to it that it stands there once.
    own_id = [("X-Request-ID", environ["HTTP_X_REQUEST_ID"])] if "HTTP_X_REQUEST_ID" in environ else []
    start_response("200 OK", [("Content-Type", "application/json"), *own_id])
    return [json.dumps(answer).encode()]


def other(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    """Another callable of the same module."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"other"]
