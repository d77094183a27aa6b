"""Measures the exporter of a host with many workers, and what counting a request costs. Called by bench/exporter.

The workers are real ones, of a vassal with the model echo under uWSGI, and each has answered good and bad requests.
A scrape is a request for /metrics on the exporter's socket, as nginx sends it.
"""

import argparse
import datetime
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_hosts import ROOT, machine
from inference.metrics import Metrics
from servers import running, uwsgi, wait_for

RAW = ROOT / "docs" / "performance" / "exporter.json"
SCRAPES = 50


def fetch(path: Path) -> bytes:
    """One scrape."""
    connection = http.client.HTTPConnection("exporter", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("GET", "/metrics")
    body = connection.getresponse().read()
    connection.close()
    return body


def scrapes(folder: Path, workers: int) -> dict[str, float]:
    """Time scrapes of a host with one vassal of so many workers."""
    counts = folder / "counts"
    variables = {
        "INFERENCE_MODEL": "inference.models.echo:EchoModel",
        "INFERENCE_ACCELERATOR": "cpu",
        "INFERENCE_METRICS": str(counts),
    }
    group = subprocess.run(["id", "-gn"], check=True, capture_output=True, text=True).stdout.strip()
    settings = {
        "host": "host1",
        "socket": str(folder / "http.sock"),
        "socket_group": group,
        "devices": [{"name": "cpu0", "kind": "cpu", "uuid": "", "model": "CPU"}],
        "routes": {"echo": "/v1/parse"},
        "nginx_status": "http://127.0.0.1:9/nginx",
        "nginx_dir": str(folder),
        "devices_dir": str(folder / "devices"),
    }
    (folder / "exporter.json").write_text(json.dumps(settings))
    vassals = folder / "devices" / "cpu0" / "vassals"
    vassals.mkdir(parents=True)
    with uwsgi(folder, workers, variables) as server:
        (vassals / "echo--1.ini").write_text(
            f"chdir = /opt/fleet/releases/1\nenv = INFERENCE_METRICS={counts}\n"
            f"http-socket = 127.0.0.1:{server.port}\nstats = {folder}/stats.sock\n"
        )
        # Until every worker has answered; uWSGI chooses them.
        for _ in range(20 * workers):
            server.ask("POST", "/v1/parse", b"hello", {"Content-Type": "text/plain"})
            server.ask("GET", "/nothing")
        command = [sys.executable, "-m", "inference.exporter", str(folder / "exporter.json")]
        with running(command, folder / "exporter.log", {}) as exporter:
            wait_for(lambda: exporter.lines("started"), "the exporter")
            fetch(folder / "http.sock")
            times = []
            for _ in range(SCRAPES):
                began = time.perf_counter()
                text = fetch(folder / "http.sock")
                times.append((time.perf_counter() - began) * 1000)
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {
        "workers": workers,
        "files": len(list(counts.glob("*.db"))),
        "series": len(lines),
        "scrape_ms_median": round(statistics.median(times), 2),
        "scrape_ms_max": round(max(times), 2),
    }


def counting(folder: Path, requests: int = 20_000) -> float:
    """Microseconds that a good answer takes to be counted."""
    metrics = Metrics(folder, "1", "/v1/parse")
    began = time.perf_counter()
    for _ in range(requests):
        metrics.began()
        metrics.finished("/v1/parse", 200, None, (0.001, 0.01, 0.1, 0.111))
    return round((time.perf_counter() - began) / requests * 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench exporter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RAW, help="file to write")
    given = parser.parse_args()
    raw: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "scrapes": [],
    }
    for workers in (2, 16, 64):
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            raw["scrapes"] = [*raw["scrapes"], scrapes(Path(folder), workers)]  # type: ignore[misc]
        print(raw["scrapes"][-1], flush=True)  # type: ignore[index]
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        raw["counting_microseconds"] = counting(Path(folder))
    print(f"counting: {raw['counting_microseconds']} us a request")
    given.out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
