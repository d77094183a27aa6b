#!/usr/bin/env python3
"""Constant load with a check of every answer: `load.py URL STOP_FILE REPORT [CONNECT_SECONDS]`.

Runs until STOP_FILE is there, then writes to REPORT how many requests there were, what failed, which edges answered,
and the longest time without a good answer.
"""

import http.client
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

THREADS = 4
PAUSE_SECONDS = 0.01


class Load:
    """What all threads count together."""

    def __init__(self, url: str, stop: Path, connect: float) -> None:
        self.url = urlsplit(url)
        self.stop = stop
        self.connect = connect
        self.lock = threading.Lock()
        self.requests = 0
        self.failed: list[str] = []
        self.headers: Counter[str] = Counter()
        self.good_at = time.monotonic()
        self.gap = 0.0

    def ask(self, text: str) -> str:
        """One request on a connection of its own; gives what is wrong with the answer, or nothing."""
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=self.connect)
        try:
            # Short, to notice at once that an edge answers again; then as long as an edge may try other hosts.
            connection.connect()
            connection.sock.settimeout(10)
            connection.request("POST", self.url.path, text.encode(), {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            body = answer.read()
            with self.lock:
                self.headers[answer.headers["X-Fleet-Edge"] or "no edge"] += 1
            if answer.status != 200:
                return f"{answer.status} {body[:200]!r}"
            return "" if json.loads(body)["echo"] == text else f"answered with {body[:200]!r}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def work(self, name: int) -> None:
        """Ask until it is time to stop."""
        number = 0
        while not self.stop.exists():
            number += 1
            began = time.time()
            wrong = self.ask(f"{name}-{number}")
            now = time.monotonic()
            with self.lock:
                self.requests += 1
                if wrong:
                    self.failed.append(f"{began:.2f} {wrong}")
                else:
                    self.gap = max(self.gap, now - self.good_at)
                    self.good_at = now
            time.sleep(PAUSE_SECONDS)


def main() -> None:
    url, stop, report, *more = sys.argv[1:]
    load = Load(url, Path(stop), float(more[0]) if more else 0.3)
    workers = [threading.Thread(target=load.work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = {
        "requests": load.requests,
        "failed": len(load.failed),
        "failures": load.failed[:20],
        "edges": dict(load.headers),
        "gap_seconds": round(load.gap, 2),
    }
    Path(report).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
