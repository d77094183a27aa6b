"""The app under Flask's own server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ECHO, running, wait_for


def test_flask_serves_the_same_app(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "inference.wsgi", "run", "--port", "0"]
    with running(command, tmp_path / "log", {**ECHO, "INFERENCE_SERVICE": "demo"}) as server:
        match = wait_for(lambda: re.search(r"Running on http://127\.0\.0\.1:(\d+)", server.text()), "the port")
        server.port = int(match[1])
        reply = server.ask("POST", "/v1/parse", b"hi", {"Content-Type": "text/plain"})
        assert (reply.status, reply.json()["echo"]) == (200, "hi")
        # This server knows where a chunked body ends.
        assert (
            server.ask("POST", "/v1/parse", iter([b"a", b"b"]), {"Content-Type": "text/plain"}).json()["echo"] == "ab"
        )
        (loaded,) = server.lines("model_loaded")
        assert (loaded["model"], loaded["torch_device"], loaded["service"]) == ("echo", "cpu", "demo")
        assert loaded["load_seconds"] >= 0
        assert len(server.lines("started")) == 1


@pytest.mark.parametrize(
    ("variables", "error", "reason"),
    [
        ({"INFERENCE_ROUT": "/x"}, "ConfigError", "did you mean INFERENCE_ROUTE?"),
        ({"INFERENCE_OPTIONS": '{"delay": 1}'}, "ConfigError", "did you mean delay_ms?"),
        ({"INFERENCE_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": ""}, "ConfigError", "INFERENCE_ACCELERATOR='cuda'"),
    ],
)
def test_failed_start_says_why(tmp_path: Path, variables: dict[str, str], error: str, reason: str) -> None:
    command = [sys.executable, "-c", "import inference.wsgi"]
    with running(command, tmp_path / "log", {**ECHO, **variables}) as server:
        try:
            assert server.process.wait(60) == 1
        except subprocess.TimeoutExpired:
            raise AssertionError(server.text()) from None
        (line,) = server.lines("not_started")
        assert (line["level"], line["error"]) == ("critical", error)
        assert reason in line["reason"]
