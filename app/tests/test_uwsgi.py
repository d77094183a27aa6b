"""The app under real uWSGI, with the options that the vassals have."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import ECHO, Server, running, stop, uwsgi, uwsgi_ini, wait_for

BROKEN_MODEL = '''
from inference.models.echo import EchoModel


class BreakableModel(EchoModel):
    """Stays broken after the first body that says so, as a CUDA context does."""

    broken = False

    def predict(self, inputs):
        self.broken = self.broken or b"break" in str(inputs).encode()
        if self.broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().predict(inputs)
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers with the echo model."""
    with uwsgi(tmp_path_factory.mktemp("uwsgi")) as server:
        yield server


def workers(server: Server) -> dict[int, dict[str, Any]]:
    """Ask uWSGI's own statistics for the workers by their process id."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(server.log.parent / "stats.sock"))
        text = b"".join(iter(lambda: connection.recv(65536), b""))
    return {worker["pid"]: worker for worker in json.loads(text)["workers"]}


def send(server: Server, headers: dict[str, str], body: bytes) -> bytes:
    """Send a request as it is given, without a library that makes it right."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(f"POST /v1/parse HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_request(server: Server) -> None:
    headers = {"Content-Type": "application/json", "X-Request-ID": "me-1", "Connection": "close"}
    reply = server.ask("POST", "/v1/parse", b'{"a": [1]}', headers)
    assert (reply.status, reply.headers["X-Request-ID"]) == (200, "me-1")
    assert reply.json()["echo"] == {"a": [1]}
    (line,) = [line for line in server.lines("request") if line["request_id"] == "me-1"]
    assert (line["status"], line["path"], line["client"], line["bytes_in"]) == (200, "/v1/parse", "127.0.0.1", 10)
    assert line["bytes_out"] == len(reply.body)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version"])
def test_health(server: Server, path: str) -> None:
    assert server.ask("GET", path).status == 200
    assert server.ask("HEAD", path).body == b""


def test_large_body(server: Server) -> None:
    data = os.urandom(1_000_000) * 90
    expected = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert server.ask("POST", "/v1/parse", data).json()["echo"] == expected
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + data + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert server.ask("POST", "/v1/parse", form, headers).json()["echo"] == expected


@pytest.mark.parametrize(
    ("method", "path", "size", "status", "slug"),
    [
        ("POST", "/nowhere", 5_000_000, 404, "not-found"),
        ("PUT", "/v1/parse", 5_000_000, 405, "method-not-allowed"),
        ("POST", "/v1/parse", 104_857_601, 413, "body-too-large"),
        ("POST", "/v1/parse", 0, 400, "unreadable-input"),
    ],
)
def test_client_gets_the_problem_also_when_it_sends_much(
    server: Server, method: str, path: str, size: int, status: int, slug: str
) -> None:
    reply = server.ask(method, path, bytes(size))
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
    assert reply.json()["type"] == f"urn:inference-fleet:problem:{slug}"
    if status == 405:
        assert reply.headers["Allow"] == "OPTIONS, POST"


def test_chunks_without_a_length_are_refused(server: Server) -> None:
    answer = send(server, {"Transfer-Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert b"urn:inference-fleet:problem:length-required" in answer


def test_chunks_with_a_length_as_nginx_sends_them_are_read(server: Server) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "3", "Content-Type": "text/plain"}
    answer = send(server, headers, b"abc")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"echo":"abc"' in answer


def test_client_that_leaves_in_the_middle_harms_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"POST /v1/parse HTTP/1.1\r\nHost: x\r\nX-Request-ID: left\r\nContent-Length: 9\r\n\r\nabc")
    (line,) = wait_for(
        lambda: [line for line in server.lines("request") if line["request_id"] == "left"], "the line of the request"
    )
    assert (line["status"], line["problem"]) == (400, "unreadable-input")
    assert server.ask("GET", "/readyz").status == 200


def test_killed_worker_is_replaced(server: Server) -> None:
    before = workers(server)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    started = len(server.lines("started"))
    wait_for(lambda: len(server.lines("started")) > started or set(workers(server)) != set(before), "a new worker")
    wait_for(
        lambda: victim not in workers(server) and all(worker["accepting"] for worker in workers(server).values()),
        "two accepting workers",
    )
    assert len(workers(server)) == 2
    assert server.ask("POST", "/v1/parse", b"x").status == 200


def test_settings_in_the_ini_reach_the_app(tmp_path: Path) -> None:
    """The pyuwsgi wheel puts ``env`` lines into the environment after Python has read it."""
    variables = {**ECHO, "INFERENCE_RELEASE": "from-outside"}
    with uwsgi(tmp_path, 1, variables, env="INFERENCE_RELEASE=from-ini") as server:
        assert server.ask("GET", "/version").json()["release"] == "from-ini"


def test_stuck_worker_ends_with_its_own_status_and_is_replaced(tmp_path: Path) -> None:
    options = {"INFERENCE_OPTIONS": '{"delay_ms": 1500}', "INFERENCE_TIMEOUT_SECONDS": "0.3"}
    with uwsgi(tmp_path, 1, {**ECHO, **options}) as server:
        with pytest.raises(ConnectionError):
            server.ask("POST", "/v1/parse", b"x", {"X-Request-ID": "slow"})
        (line,) = server.lines("model_stuck")
        assert (line["request_id"], line["exit_status"], line["level"]) == ("slow", 86, "critical")
        wait_for(lambda: len(server.lines("started")) == 2, "a new worker")
        assert server.ask("GET", "/readyz").status == 200


def test_worker_with_a_broken_model_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "breakable.py").write_text(BROKEN_MODEL)
    variables = {**ECHO, "INFERENCE_MODEL": "breakable:BreakableModel"}
    with uwsgi(tmp_path, 1, variables, pythonpath=str(tmp_path)) as server:
        assert server.ask("POST", "/v1/parse", b"break", {"Content-Type": "text/plain"}).status == 500
        assert server.ask("GET", "/readyz").status == 503
        time.sleep(1.1)
        reply = server.ask("POST", "/v1/parse", b"x")
        assert reply.status == 503
        assert int(reply.headers["Retry-After"]) >= 1
        wait_for(lambda: len(server.lines("started")) == 2, "a new worker")
        assert server.ask("POST", "/v1/parse", b"x").status == 200


def test_request_in_flight_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    options = {"INFERENCE_OPTIONS": '{"delay_ms": 1000}'}
    with uwsgi(tmp_path, 1, {**ECHO, **options}) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(b"POST /v1/parse HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
            time.sleep(0.3)
            # What an emperor with emperor-graceful-shutdown asks of a vassal's workers.
            for pid in workers(server):
                os.kill(pid, signal.SIGHUP)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: len(server.lines("started")) == 2, "a new worker")
        assert stop(server) == 0
        assert "segmentation fault" not in server.text().lower()
        # The worker that was asked to go and the one that came in its place have both ended in order.
        assert len(server.lines("stopped")) == 2


@pytest.mark.parametrize(
    ("variables", "options", "reason"),
    [
        ({"INFERENCE_THREADS": "many"}, {}, "INFERENCE_THREADS='many': must be an integer"),
        ({"INFERENCE_MODEL": "nowhere:X"}, {}, "INFERENCE_MODEL='nowhere:X': there is no module 'nowhere'"),
        ({}, {"lazy-apps": ""}, "set 'lazy-apps = true'"),
        ({}, {"enable-threads": "", "py-call-uwsgi-fork-hooks": ""}, "set 'enable-threads = true'"),
    ],
)
def test_server_does_not_start_with_wrong_settings(
    tmp_path: Path, variables: dict[str, str], options: dict[str, str], reason: str
) -> None:
    ini = uwsgi_ini(tmp_path, **options)
    command = [str(Path(sys.executable).parent / "uwsgi"), "--ini", str(ini)]
    with running(command, tmp_path / "log", {**ECHO, **variables}) as server:
        assert server.process.wait(30) != 0
        assert any(reason in line["reason"] for line in server.lines("not_started")), server.text()
