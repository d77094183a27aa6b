"""Starts the systems that ours is measured against: each with its own server file in bench/peers."""

from __future__ import annotations

import http.client
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environments
import processes

PEERS = Path(__file__).resolve().parent / "peers"
#: Loading torch and a model on a busy machine takes this long at most.
START_SECONDS = 120
#: How each peer is started; the first word is a program of the peers' environment.
COMMANDS = {
    "mosec": ["python", "serve_mosec.py"],
    "gunicorn": ["gunicorn", "--config", "python:serve_gunicorn"],
    "litserve": ["python", "serve_litserve.py"],
    "bentoml": ["bentoml", "serve", "serve_bentoml:service", "--host", "127.0.0.1", "--port", "@PORT@"],
    "rapidocr_api": ["rapidocr_api", "-ip", "127.0.0.1", "-p", "@PORT@", "-workers", "@WORKERS@"],
}
#: The names under which PyPI knows them, for the table of versions.
PACKAGES = ["mosec", "gunicorn", "litserve", "bentoml", "rapidocr-api", "rapidocr", "onnxruntime", "torch", "flask"]


def python() -> Path:
    """The Python of the peers' environment, made from bench/peers/uv.lock when it is missing or stale."""
    return environments.locked("peers", PEERS, [])


def versions() -> dict[str, str]:
    """Versions of the peers and of what they have in common with ours."""
    text = f"from importlib.metadata import version\nfor name in {PACKAGES!r}: print(name, version(name))"
    lines = environments.run(python(), "-c", text, output=True).splitlines()
    return dict(line.split(" ", 1) for line in lines)


@contextmanager
def peer(name: str, work: str, port: int, workers: int = 1) -> Iterator[processes.Server]:
    """Run a peer and wait until it answers on `port`; `workers` are of the OCR peer, others say it in their files."""
    folder = python().parent
    program, *arguments = (
        word.replace("@PORT@", str(port)).replace("@WORKERS@", str(workers)) for word in COMMANDS[name]
    )
    environment = {
        "BENCH_WORK": work,
        "BENCH_PORT": str(port),
        "PYTHONPATH": str(PEERS),
        "PATH": f"{folder}:/usr/bin:/bin",
        # One thread for each computation, as in ours; the OCR peer's engine sets its own.
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if name == "rapidocr_api" and workers == 1:
        del environment["OMP_NUM_THREADS"]
    with tempfile.TemporaryDirectory(prefix="fleet-peer-", ignore_cleanup_errors=True) as home:
        log = Path(home) / "log"
        command = [str(folder / program), *arguments]
        environment["BENTOML_HOME"] = environment["MPLCONFIGDIR"] = home
        with processes.running(command, log, environment, end=signal.SIGTERM, cwd=PEERS) as server:
            wait_until_it_answers(server, port)
            yield server


def wait_until_it_answers(server: processes.Server, port: int) -> None:
    """Any status counts: not every peer has a route that says that it is ready.

    Raises:
        RuntimeError: it ended, or did not answer in time; with what it wrote.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise RuntimeError(f"the server on port {port} does not answer:\n{server.text()}")
