"""The load of `./fleet bench serve`: Debian's wrk with serve.lua, the same for every server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("serve.lua")
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """One request, and what only a right answer to it has: a status, and a piece of text."""

    path: str
    body: bytes
    content_type: str
    expected: bytes
    status: int = 200
    method: str = "POST"
    #: A further header, as ``Name: value``.
    header: str = ""


def wrk() -> str:
    """The load client, installed from Debian where it is missing."""
    if not shutil.which("wrk"):
        install = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", "wrk"]
        if os.geteuid() != 0:
            sys.exit(f"bench: the load client wrk is missing\n  mend it with:  sudo {' '.join(install)}")
        if not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
            subprocess.run(["apt-get", "update", "--quiet=2"], check=True)
        print("installing the load client wrk", flush=True)
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    return "wrk"


def version() -> str:
    """The client's name and version, as it says them itself."""
    done = subprocess.run([wrk(), "--version"], capture_output=True, text=True)
    return " ".join(done.stdout.split()[:2])


def load(
    port: int, requests: Sequence[Request], connections: int, seconds: float, rate: float = 0, traced: bool = False
) -> dict[str, Any]:
    """Send requests for a while, and give what came back.

    Args:
        port: of the server, on the loopback address.
        requests: sent in turn by all connections together.
        connections: kept open; each has one request under way at most.
        seconds: whole seconds that the load lasts.
        rate: requests a second sent on a schedule; 0 sends the next when an answer has come.
        traced: whether each request has an id that the answer repeats, so that answers are timed by status.

    Returns:
        ``requests_per_second`` of right answers, ``good``, ``bad`` (wrong answers, other statuses, errors of
        connections), ``statuses``, ``retry_after``, ``ms`` with percentiles, and with `traced` ``ms_by_status``.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-load-") as name:
        folder = Path(name)
        lines = []
        for number, request in enumerate(requests):
            (folder / f"{number}.body").write_bytes(request.body)
            (folder / f"{number}.expected").write_bytes(request.expected)
            fields = [request.method, request.path, request.content_type or "-", request.header or "-"]
            lines.append("\t".join([*fields, f"{number}.body", str(request.status), f"{number}.expected"]) + "\n")
        (folder / "requests.tsv").write_text("".join(lines))
        command = [
            *(wrk(), "--threads=1", f"--connections={connections}", f"--duration={round(seconds)}s"),
            *(f"--timeout={TIMEOUT_SECONDS}s", f"--script={SCRIPT}", f"http://127.0.0.1:{port}{requests[0].path}"),
            *("--", str(folder), f"{rate:.3f}", "1" if traced else "0"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    measured = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if done.returncode or not measured:
        raise RuntimeError(f"wrk ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return summary(json.loads(measured[0].removeprefix("MEASURED ")))


def summary(raw: dict[str, Any]) -> dict[str, Any]:
    """What serve.lua measured, in the words of :func:`load`."""
    statuses: dict[str, int] = raw["statuses"]
    good = raw["right"]
    errors = sum(raw["errors"].values())
    found: dict[str, Any] = {
        # Of pages there are one or two a second.
        "requests_per_second": round(good / raw["seconds"], 1 if good >= 100 * raw["seconds"] else 3),
        "seconds": round(raw["seconds"], 2),
        "good": good,
        "bad": sum(statuses.values()) - good + errors,
        "statuses": statuses,
        "ms": {name: round(value, 3) for name, value in sorted(raw["ms"].items())},
    }
    if errors:
        found["errors"] = raw["errors"]
    if found["bad"]:
        found["example"] = raw["example"]
    if raw["times"]:
        found["retry_after"] = raw["retry_after"]
        steps: dict[str, dict[int, int]] = {}
        for key, count in raw["times"].items():
            status, step = key.split()
            steps.setdefault(status, {})[int(step)] = count
        step_ms = raw["step"] * 1000
        found["ms_by_status"] = {status: percentiles(counts, step_ms) for status, counts in sorted(steps.items())}
    return found


def percentiles(counts: dict[int, int], step_ms: float) -> dict[str, float]:
    """Percentiles of times that were counted in steps; each time counts as the end of its step."""
    total, seen = sum(counts.values()), 0
    wanted = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found: dict[str, float] = {}
    for step, count in sorted(counts.items()):
        seen += count
        for name, share in wanted.items():
            if name not in found and seen >= share * total:
                found[name] = round((step + 1) * step_ms, 3)
    return found
