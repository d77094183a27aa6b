"""Start real servers, talk to them, and end them by their process id."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds that any single wait may take.
PATIENCE_SECONDS = 30.0

#: What a vassal of mode batch has in its ini on top.
MODEL_PROCESS = f"cmd=exec {sys.executable} -m inference.model_process,stopsignal=15"

ECHO = {"INFERENCE_MODEL": "inference.models.echo:EchoModel", "INFERENCE_ACCELERATOR": "cpu"}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until ``condition`` gives something true, and give that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def text(self) -> str:
        """Give all that the server has written."""
        return self.log.read_text(errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Give the app's log lines of one event."""
        found = []
        for line in self.text().splitlines():
            if line.startswith('{"time"'):
                facts = json.loads(line)
                if facts["event"] == event:
                    found.append(facts)
        return found

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()


@contextmanager
def running(command: list[str], log: Path, variables: dict[str, str]) -> Iterator[Server]:
    """Run a server in a process group of its own and end it at the end of the block."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERENCE_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environ, **variables},
            cwd=log.parent,
            start_new_session=True,
        )
    server = Server(process, log)
    try:
        yield server
    finally:
        stop(server)


def stop(server: Server) -> int:
    """Ask a server to end, insist after a while, and give its exit status."""
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            # The group is the server's own, made by start_new_session.
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
    return server.process.returncode


def uwsgi_ini(folder: Path, **options: str) -> Path:
    """Write a vassal's ini as the fleet does, but on a free TCP port and without a log file."""
    settings = {
        "strict": "true",
        "master": "true",
        "lazy-apps": "true",
        "need-app": "true",
        "single-interpreter": "true",
        "enable-threads": "true",
        "die-on-term": "true",
        "no-orphans": "true",
        "vacuum": "true",
        "auto-procname": "true",
        "py-call-uwsgi-fork-hooks": "true",
        "disable-logging": "true",
        "buffer-size": "65536",
        "processes": "2",
        "http-socket": "127.0.0.1:0",
        "stats": str(folder / "stats.sock"),
        "module": "inference.wsgi:app",
        **options,
    }
    path = folder / "app.ini"
    path.write_text("[uwsgi]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items() if value))
    return path


def batching(folder: Path, **variables: str) -> dict[str, str]:
    """Give the variables of a service of mode batch with the echo model, and others: ``batch_max_items="8"``."""
    given = {f"INFERENCE_{name.upper()}": value for name, value in variables.items()}
    return {**ECHO, "INFERENCE_MODE": "batch", "INFERENCE_CHANNEL": str(folder / "model"), **given}


@contextmanager
def uwsgi(
    folder: Path,
    workers: int = 2,
    variables: dict[str, str] | None = None,
    seconds: float = PATIENCE_SECONDS,
    **options: str,
) -> Iterator[Server]:
    """Run the app under real uWSGI and wait until every worker has loaded it, so many seconds at most."""
    program = Path(sys.executable).parent / "uwsgi"
    ini = uwsgi_ini(folder, processes=str(workers), **options)
    with running([str(program), "--ini", str(ini)], folder / "log", variables or ECHO) as server:

        def loaded() -> bool:
            assert server.process.poll() is None, server.text()
            return len(server.lines("started")) >= workers

        wait_for(loaded, f"{workers} workers:\n{server.text()}", seconds)
        match = re.search(r"bound to TCP address 127\.0\.0\.1:(\d+)", server.text())
        assert match, server.text()
        server.port = int(match[1])
        yield server
