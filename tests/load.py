#!/usr/bin/env python3
"""Sends requests to an echo service at a constant rate, checks every answer, and writes what it saw as JSON.

    tests/load.py http://192.0.2.10:8100/v1/echo --report report.json --rate 60 --stop-file stop

It ends when the stop file appears or SIGTERM arrives, and after --seconds or --most requests in any case; requests that
are on their way are waited for. Exit 0 means that the report is there: what it says is for the caller to judge.
"""

import argparse
import http.client
import itertools
import json
import math
import signal
import sys
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: nginx starts its new workers a moment before the old ones stop to accept. On a busy machine that takes longer.
OVERLAP_SECONDS = 2.0
#: A member that answers nothing for this long while others do has been taken out.
PAUSE_SECONDS = 2.0
#: One try to connect, when tries are repeated; an address that moves does not answer at all.
CONNECT_SECONDS = 0.5
#: A request that takes longer has waited for something.
SLOW_SECONDS = 1.0
#: Failures that the report shows in full.
SAMPLES = 20

# One clock for all, which no correction of the time can move; shown as seconds since the epoch.
_EPOCH = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch."""
    return _EPOCH + time.monotonic()


@dataclass(frozen=True, slots=True)
class Record:
    """One request: when it was sent, when it ended, who answered, and what is wrong with the answer."""

    start: float
    end: float
    status: int = 0
    release: str = ""
    device: str = ""
    host: str = ""
    error: str = ""
    reconnects: int = 0
    #: Seconds that it asked the model to take.
    sleep: float = 0.0

    @property
    def member(self) -> str:
        """The device that answered, with its host where that is told."""
        return f"{self.host or '-'}/{self.device}"


# ---- one request -------------------------------------------------------------------------------------------------


def complaint(sent: object, request_id: str, status: int, returned_id: str | None, body: bytes) -> tuple[str, Any]:
    """What is wrong with an answer, and the answer itself where it can be read."""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"status {status}, no JSON: {body[:120]!r}", {}
    if not isinstance(answer, dict):
        return f"status {status}, not an object: {body[:120]!r}", {}
    if status != 200:
        return f"status {status}: {answer.get('detail', body[:120])}", answer
    if answer.get("echo") != sent:
        return f"another body came back: {str(answer.get('echo'))[:120]!r}", answer
    if returned_id != request_id or answer.get("request_id") != request_id:
        return f"another id came back: {returned_id!r}, {answer.get('request_id')!r}", answer
    model = answer.get("model")
    if not isinstance(model, dict) or not model.get("release") or not answer.get("device"):
        return "no release or no device in the answer", answer
    return "", answer


def connect(address: tuple[str, int], patience: float, timeout: float) -> tuple[http.client.HTTPConnection, int]:
    """Open a connection, and say how often it had to be tried again.

    An address that is moving from one machine to another takes no connection for a moment. Nothing was sent then, so a
    client may try again; a kernel does so too, but after 1, 3 and 7 seconds, too coarse to measure with.
    A refused connection is not tried again: something was there and said no.
    """
    end = time.monotonic() + patience
    tries = 0
    while True:
        connection = http.client.HTTPConnection(*address, timeout=CONNECT_SECONDS if patience else timeout)
        try:
            connection.connect()
        except ConnectionRefusedError:
            raise
        except OSError:
            connection.close()
            if time.monotonic() >= end:
                raise
            tries += 1
            # An address without a machine fails at once when the kernel has noticed.
            time.sleep(0.05)
            continue
        connection.sock.settimeout(timeout)
        return connection, tries


def send(url: urllib.parse.SplitResult, body: dict[str, Any], options: argparse.Namespace) -> Record:
    """Send one request and check its answer."""
    request_id = uuid.uuid4().hex
    start = now()
    try:
        # A new connection for each request: when nginx is reloaded it closes idle connections, and a request that is
        # sent at that very moment is lost without any fault of the fleet. Clients that keep connections repeat it.
        connection, tries = connect((str(url.hostname), url.port or 80), options.connect_patience, options.timeout)
        try:
            connection.request(
                "POST",
                url.path,
                json.dumps(body),
                {"Content-Type": "application/json", "X-Request-ID": request_id, "Connection": "close"},
            )
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        return Record(start, now(), error=f"{type(error).__name__}: {error}", sleep=body.get("sleep", 0.0))
    end = now()
    error_text, answer = complaint(body, request_id, response.status, response.headers.get("X-Request-ID"), text)
    model = answer.get("model")
    return Record(
        start,
        end,
        response.status,
        str(model.get("release", "")) if isinstance(model, dict) else "",
        str(answer.get("device", "")),
        response.headers.get("X-Fleet-Host", ""),
        error_text,
        tries,
        body.get("sleep", 0.0),
    )


# ---- the load ----------------------------------------------------------------------------------------------------


class Schedule:
    """Hands out numbers of requests, each when it is due, until the load is over."""

    def __init__(self, rate: float, least: int, most: int) -> None:
        self._interval = 1 / rate
        self._least, self._most = least, most
        self._lock = threading.Lock()
        self._due = time.monotonic()
        self.taken = 0
        self._asked = threading.Event()
        self._ended = threading.Event()

    def stop(self) -> None:
        """End the load as soon as there are enough requests."""
        self._asked.set()

    def end(self) -> None:
        """End the load now."""
        self._ended.set()

    def is_over(self) -> bool:
        """Whether no further request is wanted."""
        enough = self._asked.is_set() and self.taken >= self._least
        return self._ended.is_set() or self.taken >= self._most or enough

    def take(self) -> int | None:
        """Wait until the next request is due; None when there is none any more."""
        with self._lock:
            if self.is_over():
                return None
            number = self.taken
            self.taken += 1
            # What could not be sent in time is not made up for: a burst would measure something else.
            self._due = max(self._due + self._interval, time.monotonic())
            due = self._due
        return None if self._ended.wait(max(0.0, due - time.monotonic())) else number


def run(options: argparse.Namespace) -> tuple[list[Record], float, float]:
    """Send requests until the end; gives them, and when that began and ended."""
    url = urllib.parse.urlsplit(options.url)
    schedule = Schedule(options.rate, options.least, options.most)
    records: list[Record] = []
    signal.signal(signal.SIGTERM, lambda *_: schedule.stop())
    signal.signal(signal.SIGINT, lambda *_: schedule.stop())

    def client() -> None:
        while (number := schedule.take()) is not None:
            body: dict[str, Any] = {"number": number, "text": uuid.uuid4().hex}
            if options.long_every and number % options.long_every == 0:
                body["sleep"] = options.long_seconds
            records.append(send(url, body, options))

    began = now()
    threads = [threading.Thread(target=client, daemon=True) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    while not schedule.is_over():
        time.sleep(0.05)
        # Without its folder nobody can stop it, nor read what it found.
        if options.stop_file and (options.stop_file.exists() or not options.stop_file.parent.exists()):
            schedule.stop()
        if options.started_file and len(records) >= options.clients:
            options.started_file.touch()
        if now() - began > options.seconds:
            schedule.end()
    ended = now()
    for thread in threads:
        thread.join(options.timeout + options.connect_patience + 5)
    return list(records), began, ended


# ---- the report --------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed; 0 when there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def releases_of(answers: Iterable[Record], overlap: float = OVERLAP_SECONDS) -> dict[str, Any]:
    """How the answers of one member changed from release to release.

    ``sequence`` holds the releases in the order in which they began to answer: ``[old, new]`` when it changed once and
    never back. ``overlap_seconds`` is how long the former release still took new requests after the next one had
    answered, which up to ``overlap`` is not a way back. ``straddled`` counts the requests that a release had taken
    before the next one answered, and that it answered afterwards.
    """
    sequence: list[str] = []
    changed_at = 0.0
    longest = 0.0
    ordered = sorted(answers, key=lambda record: record.start)
    first_end: dict[str, float] = {}
    for record in ordered:
        first_end[record.release] = min(first_end.get(record.release, math.inf), record.end)
    for record in ordered:
        if sequence and record.release == sequence[-1]:
            continue
        if len(sequence) > 1 and record.release == sequence[-2] and record.start <= changed_at + overlap:
            longest = max(longest, record.start - changed_at)
            continue
        # A release that comes back has its first end long behind it.
        changed_at = record.end if record.release in sequence else first_end[record.release]
        sequence.append(record.release)
    straddled = 0
    for former, latter in itertools.pairwise(sequence):
        straddled += sum(
            record.release == former and record.start < first_end[latter] < record.end for record in ordered
        )
    return {"sequence": sequence, "overlap_seconds": round(max(0.0, longest), 3), "straddled": straddled}


def pauses_of(answers: Iterable[Record], least: float = PAUSE_SECONDS) -> list[list[float]]:
    """Times in which a member answered nothing, as pairs of the moments before and after."""
    ends = sorted(record.end for record in answers)
    return [[round(before, 3), round(after, 3)] for before, after in itertools.pairwise(ends) if after - before > least]


def report(records: Sequence[Record], began: float, ended: float, url: str = "") -> dict[str, Any]:
    """Sum up a load; the times that long requests take count for themselves."""
    good = [record for record in records if not record.error]
    bad = sorted((record for record in records if record.error), key=lambda record: record.start)
    # Without any answer from the beginning, or until the end, is a gap too; after it only stragglers are waited for.
    ends = [began, *sorted(record.end for record in good if record.end < ended), ended]
    gap, gap_at = max((after - before, before) for before, after in itertools.pairwise(ends))
    members = {}
    for name in sorted({record.member for record in good}):
        own = [record for record in good if record.member == name]
        members[name] = {
            "count": len(own),
            "first": round(min(record.start for record in own), 3),
            "last": round(max(record.end for record in own), 3),
            "pauses": pauses_of(own),
            "last_release": max(own, key=lambda record: record.start).release,
            **releases_of(own),
        }
    taken = [record.end - record.start for record in good if not record.sleep]
    slow = [record.start for record in records if record.end - record.start > SLOW_SECONDS + record.sleep]
    long = [record for record in good if record.sleep]
    return {
        "url": url,
        "began": round(began, 3),
        "ended": round(ended, 3),
        "seconds": round(ended - began, 1),
        "count": len(records),
        "rate": round(len(records) / max(ended - began, 0.001), 1),
        "failed": len(bad),
        "errors": dict(Counter(record.error for record in bad).most_common(SAMPLES)),
        "failures": [asdict(record) for record in bad[:SAMPLES]],
        "failed_first_start": round(bad[0].start, 3) if bad else None,
        "failed_last_start": round(bad[-1].start, 3) if bad else None,
        "reconnects": sum(record.reconnects for record in records),
        "releases": dict(Counter(record.release for record in good)),
        "latency_ms": {
            "p50": round(percentile(taken, 0.5) * 1000, 1),
            "p99": round(percentile(taken, 0.99) * 1000, 1),
            "max": round(max(taken, default=0.0) * 1000, 1),
        },
        "slow": {"count": len(slow), "last_start": round(max(slow, default=0.0), 3)},
        "long": {
            "count": len(long),
            "longest_seconds": round(max((one.end - one.start for one in long), default=0.0), 1),
            "under_way_at_a_change": sum(member["straddled"] for member in members.values()),
        },
        "longest_gap_seconds": round(gap, 3),
        "longest_gap_at": round(gap_at, 3),
        "members": members,
    }


def write(path: Path, text: str) -> None:
    """Write a file so that whoever waits for it finds it whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Constant load on an echo service, every answer checked.")
    parser.add_argument("url")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE")
    parser.add_argument("--clients", type=int, default=16, help="requests on their way at the same time, at most")
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest time")
    parser.add_argument("--least", type=int, default=0, help="go on until so many requests, also when told to stop")
    parser.add_argument("--most", type=int, default=200_000, help="stop after so many requests")
    parser.add_argument("--long-every", type=int, default=0, metavar="N", help="each Nth request is a long one")
    parser.add_argument("--long-seconds", type=float, default=10.0, help="how long the model shall take for it")
    parser.add_argument("--timeout", type=float, default=30.0, help="longest wait for an answer, in seconds")
    parser.add_argument("--connect-patience", type=float, default=0.0, help="seconds in which to try to connect again")
    parser.add_argument("--stop-file", type=Path, help="end when this file is there")
    parser.add_argument("--started-file", type=Path, help="made when each client may have had an answer")
    parser.add_argument("--records", type=Path, help="write each request here too, as a line of JSON")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.rate <= 0 or options.seconds <= 0:
        parser.error("--clients, --rate and --seconds must be above 0")
    return options


def main() -> int:
    """Send the load and write the report."""
    options = parse()
    records, began, ended = run(options)
    if options.records:
        lines = (json.dumps(asdict(one)) for one in sorted(records, key=lambda one: one.start))
        write(options.records, "\n".join(lines) + "\n")
    found = report(records, began, ended, options.url)
    write(options.report, json.dumps(found, indent=2) + "\n")
    print(
        f"{found['count']} requests in {found['seconds']} s, {found['failed']} failed; "
        f"p50 {found['latency_ms']['p50']} ms, p99 {found['latency_ms']['p99']} ms, "
        f"longest gap {found['longest_gap_seconds']} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
