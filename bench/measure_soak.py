"""Measures whether memory grows under good and bad requests. Called by bench/soak.

A service of mode batch behind nginx gets pages and texts that it can answer, and about as many requests that it cannot:
bodies that are empty, damaged, too large or no picture, wrong methods and paths, deadlines that are malformed or over.
Every answer is held against what that request must get. The resident memory of each process is sampled all the while;
what it was after the warm-up is compared with what it is at the end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import serve_ours
import serve_page
import serve_rows
from serve_load import Request, load

#: Samples in a run, and seconds between two of them at most.
SAMPLES = 120
SAMPLE_SECONDS = 5.0
CONNECTIONS = 8
#: Part of the run that warms up: allocators, caches and pools reach their size.
WARM_SHARE = 0.2
#: Part of the rest whose median counts as the beginning, and as the end.
EDGE_SHARE = 0.15
GROWTH_PERCENT = 5.0
MAX_BODY_MIB = 4


def mixed(route: str) -> list[Request]:
    """Good and bad requests, and what each must get."""
    pages = serve_rows.pages()
    page = min(pages.values(), key=len)
    raw = "application/octet-stream"
    good = [Request(route, body, raw, b'"lines":[') for body in sorted(pages.values(), key=len)[:4]]

    def bad(status: int, text: bytes, body: bytes = b"x", **more: Any) -> Request:
        return Request(**{"path": route, "body": body, "content_type": raw, "expected": text, "status": status, **more})

    faults = [
        bad(400, b"unreadable-input", b""),
        bad(400, b"X-Request-Deadline-Ms", page, header="X-Request-Deadline-Ms: soon"),
        bad(504, b"over-time", page, header="X-Request-Deadline-Ms: 0"),
        bad(415, b"unsupported-input", b"this is no picture"),
        bad(400, b"unreadable-input", page[: len(page) // 2]),
        bad(400, b"fields are", b"--b--\r\n", content_type="multipart/form-data; boundary=b"),
        bad(405, b"method-not-allowed", method="PUT"),
        bad(404, b"not-found", path="/nowhere"),
        bad(413, b"body-too-large", bytes((MAX_BODY_MIB << 20) + 1)),
        Request("/readyz", b"", raw, b'"ready"', method="GET"),
    ]
    # In turn, so that every good one has bad neighbours in its batch.
    return [one for index, fault in enumerate(faults) for one in (good[index % len(good)], fault)]


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM.

    Raises:
        OSError: it has ended.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


class Sampler(threading.Thread):
    """Notes the memory of processes until it is told to stop."""

    def __init__(self, known: dict[int, str], seconds: float) -> None:
        super().__init__(daemon=True)
        self.series: dict[int, dict[str, Any]] = {
            pid: {"name": name, "at": [], "mib": []} for pid, name in known.items()
        }
        self.ended: list[str] = []
        self.enough = threading.Event()
        self._period = min(SAMPLE_SECONDS, seconds / SAMPLES)
        self._began = time.monotonic()

    def run(self) -> None:
        """Sample until it is enough."""
        while not self.enough.wait(self._period):
            for pid, one in self.series.items():
                try:
                    one["mib"].append(round(resident_mib(pid), 2))
                except OSError:
                    if one["name"] not in self.ended:
                        self.ended.append(one["name"])
                    continue
                one["at"].append(round(time.monotonic() - self._began, 1))


def judged(one: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A process with its memory after the warm-up, at the end, and the growth between them."""
    warm = WARM_SHARE * seconds
    edge = EDGE_SHARE * (seconds - warm)
    begin = [mib for at, mib in zip(one["at"], one["mib"], strict=True) if warm <= at <= warm + edge]
    end = [mib for at, mib in zip(one["at"], one["mib"], strict=True) if at >= seconds - edge]
    first, last = statistics.median(begin), statistics.median(end)
    growth = round((last / first - 1) * 100, 2)
    return {**one, "begin_mib": round(first, 1), "end_mib": round(last, 1), "growth_percent": growth}


def main() -> None:
    # So that the servers end with it: they are in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(
        prog="./fleet bench soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30, help="length of the run; the docs are written from 10 on")
    minutes: float = parser.parse_args().minutes
    seconds = minutes * 60
    with serve_ours.ours("ocr", serve_rows.PORT, mode="batch", max_body_mib=MAX_BODY_MIB) as server:
        requests = mixed(server.route)
        load(server.port, requests, CONNECTIONS, 10, traced=True)
        before = server.processes()
        sampler = Sampler(before, seconds)
        sampler.start()
        found = load(server.port, requests, CONNECTIONS, seconds, traced=True)
        sampler.enough.set()
        sampler.join()
        after = server.processes()
    processes = [judged(one, seconds) for one in sampler.series.values() if one["name"] not in sampler.ended]
    worst = max(abs(one["growth_percent"]) for one in processes)
    goals = [
        serve_rows.goal("largest change of a process, %", worst, GROWTH_PERCENT, more=False),
        serve_rows.goal("answers other than what a request must get", found["bad"], 0, more=False),
        serve_rows.goal("processes that ended or came", len(before.keys() ^ after.keys()), 0, more=False),
    ]
    raw = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "minutes": minutes,
        "warm_minutes": round(WARM_SHARE * minutes, 1),
        "load": found,
        "processes": processes,
        "goals": goals,
    }
    print(serve_page.soak(raw))
    if minutes < 10:
        print("A run of less than 10 minutes leaves the page as it is.")
        return
    serve_page.RAW_SOAK.write_text(json.dumps(raw, sort_keys=True) + "\n")
    serve_page.write()


if __name__ == "__main__":
    main()
