"""The load client: which answers it takes for right, and what its report makes of them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import load
import pytest
import tree
from load import Record

LOAD = tree.ROOT / "tests" / "load.py"


def answer(**changed: Any) -> bytes:
    good = {"request_id": "id", "model": {"name": "echo", "release": "r1"}, "device": "cpu0", "echo": {"number": 1}}
    return json.dumps(good | changed).encode()


@pytest.mark.parametrize(
    ("status", "returned_id", "body", "says"),
    [
        (200, "id", answer(), ""),
        (200, "id", answer(echo={"number": 2}), "another body"),
        (200, "other", answer(), "another id"),
        (200, None, answer(), "another id"),
        (200, "id", answer(request_id="other"), "another id"),
        (200, "id", answer(model={"name": "echo"}), "no release"),
        (200, "id", answer(device=""), "no release or no device"),
        (503, "id", answer(detail="No device took it."), "status 503: No device took it."),
        (200, "id", b"<html>", "no JSON"),
        (200, "id", b"[]", "not an object"),
    ],
)
def test_only_the_whole_answer_is_right(status: int, returned_id: str | None, body: bytes, says: str) -> None:
    error, _ = load.complaint({"number": 1}, "id", status, returned_id, body)
    assert says in error
    assert bool(error) == bool(says)


def ok(start: float, release: str, end: float | None = None, member: str = "host1/cpu0") -> Record:
    host, device = member.split("/")
    return Record(start, start + 0.01 if end is None else end, 200, release, device, host)


def test_a_change_of_release_is_seen_once() -> None:
    found = load.releases_of([ok(1, "old"), ok(2, "old"), ok(3, "new"), ok(9, "new")])
    assert found == {"sequence": ["old", "new"], "overlap_seconds": 0.0, "straddled": 0}


def test_a_moment_in_which_both_answer_is_no_way_back() -> None:
    found = load.releases_of([ok(1, "old"), ok(3, "new"), ok(3.1, "old"), ok(3.2, "new"), ok(3.3, "old"), ok(4, "new")])
    assert found["sequence"] == ["old", "new"]
    assert found["overlap_seconds"] == pytest.approx(3.3 - 3.01, abs=0.001)


def test_a_way_back_is_seen() -> None:
    found = load.releases_of([ok(1, "old"), ok(3, "new"), ok(8, "old"), ok(9, "old")])
    assert found["sequence"] == ["old", "new", "old"]


def test_a_single_late_answer_of_the_old_release_is_a_way_back() -> None:
    found = load.releases_of([ok(1, "old"), ok(3, "new"), ok(8, "old"), ok(12, "new")])
    assert found["sequence"] == ["old", "new", "old", "new"]


def test_a_long_request_is_counted_by_when_it_was_sent() -> None:
    found = load.releases_of([ok(1, "old", 11), ok(2, "old"), ok(3, "new"), ok(9, "new")])
    assert found == {"sequence": ["old", "new"], "overlap_seconds": 0.0, "straddled": 1}


def test_answers_come_in_any_order() -> None:
    found = load.releases_of([ok(9, "new"), ok(2, "old"), ok(3, "new"), ok(1, "old", 11)])
    assert found["sequence"] == ["old", "new"]


def test_a_long_new_request_does_not_hide_when_the_new_release_began() -> None:
    """Sent first but answered last: the first answer of the new release is that of the second request."""
    found = load.releases_of([ok(1, "old"), ok(2.9, "new", 13), ok(3, "new"), ok(3.2, "old"), ok(6, "new")])
    assert found["sequence"] == ["old", "new"]
    assert found["overlap_seconds"] == pytest.approx(3.2 - 3.01, abs=0.001)


def test_report_counts_failures_gaps_and_members() -> None:
    records = [
        ok(10.0, "old"),
        ok(10.5, "old", member="host2/cpu0"),
        Record(11.0, 14.0, error="TimeoutError: timed out"),
        Record(11.5, 11.6, 503, error="status 503: busy"),
        ok(15.0, "new", member="host2/cpu0"),
        ok(15.1, "new", 15.3),
    ]
    found = load.report(records, 9.9, 16.0)
    assert (found["count"], found["failed"]) == (6, 2)
    assert found["errors"] == {"TimeoutError: timed out": 1, "status 503: busy": 1}
    assert (found["failed_first_start"], found["failed_last_start"]) == (11.0, 11.5)
    assert found["longest_gap_seconds"] == pytest.approx(15.01 - 10.51)
    assert found["longest_gap_at"] == pytest.approx(10.51)
    assert found["releases"] == {"old": 2, "new": 2}
    assert found["latency_ms"] == {"p50": 10.0, "p99": 200.0, "max": 200.0}
    assert list(found["members"]) == ["host1/cpu0", "host2/cpu0"]
    assert found["members"]["host1/cpu0"]["pauses"] == [[10.01, 15.3]]
    assert found["members"]["host1/cpu0"]["sequence"] == ["old", "new"]
    assert found["members"]["host2/cpu0"]["last_release"] == "new"
    json.dumps(found)


def test_silence_at_the_end_is_a_gap_too() -> None:
    assert load.report([ok(1.0, "old")], 0.9, 8.0)["longest_gap_seconds"] == pytest.approx(8.0 - 1.01)


def test_report_of_a_load_without_any_answer() -> None:
    found = load.report([Record(1.0, 2.0, error="ConnectionRefusedError: no")], 1.0, 2.0)
    assert (found["failed"], found["longest_gap_seconds"], found["members"]) == (1, 1.0, {})


def test_what_could_not_be_sent_in_time_is_not_made_up_for() -> None:
    schedule = load.Schedule(rate=20, least=0, most=100)
    schedule.take()
    time.sleep(0.5)
    began = time.monotonic()
    for _ in range(5):
        schedule.take()
    assert time.monotonic() - began > 0.15


def test_told_to_stop_it_goes_on_until_there_are_enough() -> None:
    schedule = load.Schedule(rate=1000, least=3, most=100)
    schedule.stop()
    assert [schedule.take() for _ in range(4)] == [0, 1, 2, None]


class Echo(BaseHTTPRequestHandler):
    """Answers as an echo service does; wrongly where the number says so."""

    wrong_number = -1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request_id = self.headers["X-Request-ID"]
        time.sleep(body.get("sleep", 0))
        sent = {} if body["number"] == self.wrong_number else body
        said = json.dumps(
            {"request_id": request_id, "model": {"name": "echo", "release": "r1"}, "device": "cpu0", "echo": sent}
        ).encode()
        self.send_response(200)
        self.send_header("X-Request-ID", request_id)
        self.send_header("X-Fleet-Host", "host1")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/echo"
    server.shutdown()
    thread.join()
    server.server_close()


def start(url: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    command: list[str | Path] = [
        sys.executable,
        LOAD,
        url,
        "--report",
        folder / "report.json",
        "--seconds",
        "20",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    assert process.communicate(timeout=20)[0]
    assert process.returncode == 0
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_a_wrong_answer_is_found(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "wrong_number", 7)
    found = result(start(url, tmp_path, "--rate", "200", "--most", "20"), tmp_path)
    assert (found["count"], found["failed"]) == (20, 1)
    assert "another body" in next(iter(found["errors"]))
    assert list(found["members"]) == ["host1/cpu0"]


@pytest.mark.parametrize("by", ["signal", "file"])
def test_it_stops_when_told_and_reports(url: str, tmp_path: Path, by: str) -> None:
    process = start(url, tmp_path, "--stop-file", str(tmp_path / "stop"), "--started-file", str(tmp_path / "started"))
    for _ in range(200):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    if by == "signal":
        process.terminate()
    else:
        (tmp_path / "stop").touch()
    found = result(process, tmp_path)
    assert found["seconds"] < 15
    assert found["count"] >= 16
    assert found["failed"] == 0


def test_a_request_under_way_is_waited_for(url: str, tmp_path: Path) -> None:
    found = result(
        start(url, tmp_path, "--long-every", "1", "--long-seconds", "1", "--clients", "1", "--most", "1"), tmp_path
    )
    assert (found["count"], found["failed"]) == (1, 0)
    assert found["long"] == {"count": 1, "longest_seconds": 1.0, "under_way_at_a_change": 0}
    assert found["latency_ms"]["max"] == found["slow"]["count"] == 0


def test_a_refused_connection_is_a_failure_at_once(tmp_path: Path) -> None:
    options = ["--most", "1", "--connect-patience", "10"]
    found = result(start("http://127.0.0.1:1/v1/echo", tmp_path, *options), tmp_path)
    assert (found["failed"], found["reconnects"]) == (1, 0)
    assert found["seconds"] < 5
