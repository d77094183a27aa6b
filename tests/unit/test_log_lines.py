"""Lines of all kinds as records: who wrote them, when, how bad, and of which request."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import log_lines
import pytest
from log_lines import Connections, Parser, Query

AT = log_lines.microseconds("2026-11-25T22:00:00Z")
assert AT
ROUTES = {"/v1/parse": "ocr"}
ACCESS: dict[str, Any] = {
    "time": "2026-11-25T22:21:01.250+00:00",
    "request_id": "abc-1",
    "client": "192.0.2.7",
    "method": "POST",
    "uri": "/v1/parse",
    "status": 200,
    "bytes_in": 10,
    "bytes_out": 20,
    "seconds": 1.5,
    "upstream": "unix:/run/fleet/gpu0/ocr--0.1.0-abc-def.sock",
    "upstream_status": "200",
    "upstream_seconds": "1.400",
    "pid": 77,
    "connection": 5,
}


@pytest.fixture
def zone() -> Iterator[None]:
    """A machine two hours east of Greenwich."""
    former = os.environ.get("TZ")
    os.environ["TZ"] = "EET-2"
    time.tzset()
    log_lines._local_seconds.cache_clear()
    yield
    del os.environ["TZ"]
    if former is not None:
        os.environ["TZ"] = former
    time.tzset()
    log_lines._local_seconds.cache_clear()


def record(source: str, text: str | dict[str, Any], level: str = "") -> dict[str, Any]:
    found: dict[str, Any] = Parser(ROUTES).record(
        source, text if isinstance(text, str) else json.dumps(text), AT or 0, level
    )
    return found | {"time": log_lines.text_of(found["time"])}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-25T22:21:01.123Z", "2026-11-25T22:21:01.123000Z"),
        ("2026-11-25T22:21:01+00:00", "2026-11-25T22:21:01.000000Z"),
        ("2026-11-25T22:21:01.5-05:30", "2026-11-26T03:51:01.500000Z"),
        ("2026-11-25 22:21:01.1234567Z", "2026-11-25T22:21:01.123456Z"),
    ],
)
def test_times_are_told_in_utc_with_microseconds(text: str, expected: str) -> None:
    at = log_lines.microseconds(text)
    assert at is not None
    assert log_lines.text_of(at) == expected


@pytest.mark.parametrize("text", ["yesterday", "2026-11-25", "2026-13-45T99:00:00Z", 7, None])
def test_what_is_no_time(text: object) -> None:
    assert log_lines.microseconds(text) is None


def test_a_line_of_the_app() -> None:
    line = {
        "time": "2026-11-25T22:21:01.123Z",
        "level": "warning",
        "event": "request",
        "logger": "inference.lifecycle",
        "service": "ocr",
        "device": "gpu0",
        "release": "0.1.0",
        "request_id": "abc-1",
        "status": 503,
        "timing_ms": {"queue": 1.5},
    }
    found = record("uwsgi-emperor@gpu0", line)
    assert list(found)[:7] == ["time", "source", "device", "service", "level", "event", "request_id"]
    assert found == line | {"source": "uwsgi-emperor@gpu0", "time": "2026-11-25T22:21:01.123000Z"}


def test_a_line_of_nginx_is_of_the_service_of_its_route_and_of_the_device_that_answered() -> None:
    found = record("nginx", ACCESS)
    expected = {
        "source": "nginx",
        "device": "gpu0",
        "service": "ocr",
        "level": "info",
        "event": "request",
        "request_id": "abc-1",
    }
    assert expected.items() <= found.items()
    tried = "unix:/run/fleet/gpu0/ocr--1-a.sock, unix:/run/fleet/gpu1/ocr--1-a.sock"
    assert record("nginx", ACCESS | {"upstream": tried})["device"] == "gpu1"
    # What nginx itself refused has asked no device, and an edge asks hosts.
    assert "device" not in record("nginx", ACCESS | {"upstream": ""})
    assert record("nginx", ACCESS | {"upstream": "192.0.2.11:8100"})["service"] == "ocr"
    # A vassal tells its service also by a route that the inventory has not any more.
    assert record("nginx", ACCESS | {"uri": "/v0"})["service"] == "ocr"


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [
        ("/v1/parse", 200, "info"),
        ("/v1/parse", 404, "info"),
        ("/v1/parse", 499, "info"),
        ("/v1/parse", 500, "error"),
        ("/v1/parse", 502, "error"),
        ("/v1/parse", 503, "warning"),
        ("/v1/parse", 504, "warning"),
        ("/readyz", 200, "debug"),
        ("/readyz", 503, "warning"),
        ("/.fleet/services.json", 200, "debug"),
        ("/status.json", 404, "info"),
    ],
)
def test_levels_of_requests_are_those_of_the_app(path: str, status: int, level: str) -> None:
    assert record("nginx", ACCESS | {"uri": path, "status": status})["level"] == level


def test_a_status_that_was_never_sent_does_not_make_a_line_unreadable() -> None:
    text = json.dumps(ACCESS).replace('"status": 200', '"status":000')
    assert record("nginx", text)["status"] == 0


def test_a_line_of_nginxs_error_log(zone: None) -> None:
    found = record(
        "nginx",
        "2026/11/25 23:00:01 [warn] 77#77: *5 a client request body is buffered, client: 192.0.2.7, server: , "
        'request: "POST /v1/parse?token=secret HTTP/1.1", host: "x:8100", referrer: "http://page/?name=private"',
    )
    assert found["time"] == "2026-11-25T21:00:01.000000Z"
    assert (found["level"], found["pid"], found["connection"], found["service"]) == ("warning", 77, 5, "ocr")
    assert 'request: "POST /v1/parse HTTP/1.1", host: "x:8100", referrer: "http://page/"' in found["event"]
    assert "secret" not in json.dumps(found) and "private" not in json.dumps(found)
    broken = record(
        "nginx",
        "2026/11/25 23:00:01 [crit] 77#77: *5 connect() to unix:/run/fleet/gpu1/ocr--1-a.sock failed (2: No such file)",
    )
    assert (broken["level"], broken["device"], broken["service"]) == ("critical", "gpu1", "ocr")
    assert record("nginx", "2026/11/25 23:00:01 [notice] 77#77: signal process started")["level"] == "info"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("*** Starting uWSGI 2.0.30 (64bit) ***", "info"),
        ("DAMN ! worker 1 (pid: 7) died, killed by signal 9 :( trying respawn ...", "warning"),
        ("Traceback (most recent call last):", "warning"),
        ("unable to load app 0 (mountpoint='')", "warning"),
        ("spawned uWSGI worker 1 (pid: 77, cores: 1)", "info"),
    ],
)
def test_the_level_of_a_line_without_one_is_guessed(text: str, level: str) -> None:
    found = record("uwsgi-emperor@gpu0", text)
    assert (found["level"], found["event"], found["device"]) == (level, text, "gpu0")
    assert found["time"] == "2026-11-25T22:00:00.000000Z", "it came then"


def test_a_date_of_uwsgi_is_taken_as_the_time(zone: None) -> None:
    found = record(
        "uwsgi-emperor@gpu0",
        "Wed Nov 25 22:12:12 2026 - [emperor] vassal ocr--0.1.0-abc.ini is ready to accept requests",
    )
    assert (found["time"], found["service"]) == ("2026-11-25T20:12:12.000000Z", "ocr")
    assert found["event"].startswith("[emperor] vassal ocr")


def test_what_the_journal_knows_of_the_level_counts() -> None:
    assert record("fleet-prober", "host1 is healthy", "error")["level"] == "error"


def test_a_line_of_supervisor(zone: None) -> None:
    found = record(
        "supervisord", "2026-11-25 22:11:11,123 WARN exited: uwsgi-emperor@cpu0 (terminated by SIGKILL; not expected)"
    )
    assert (found["time"], found["level"]) == ("2026-11-25T20:11:11.123000Z", "warning")
    assert found["event"].startswith("exited: uwsgi-emperor@cpu0")


def test_a_line_of_the_audit_log() -> None:
    line = {
        "time": "2026-11-25T21:31:15+00:00",
        "event": "drained",
        "run": "r",
        "by": "admin@c",
        "verb": "drain",
        "host": "host2",
    }
    found = record("audit", line)
    assert (found["level"], found["event"], found["member"]) == ("info", "drained", "host2")
    assert record("audit", {**line, "event": "failed"})["level"] == "error"


def test_a_line_that_is_too_long_is_cut() -> None:
    found = record("uwsgi-emperor@gpu0", "x" * 100_000)
    assert len(found["event"]) < 17_000
    assert found["event"].endswith("(100000 characters)")


def test_a_member_of_a_line_cannot_take_the_place_of_what_is_known() -> None:
    found = record(
        "uwsgi-emperor@gpu0", {"time": "no time", "source": "audit", "level": ["x"], "event": {"a": 1}, "request_id": 7}
    )
    assert (found["source"], found["level"], found["time"]) == (
        "uwsgi-emperor@gpu0",
        "info",
        "2026-11-25T22:00:00.000000Z",
    )


def test_an_error_of_nginx_is_of_the_request_that_was_on_its_connection_then() -> None:
    parser = Parser()
    access = parser.record("nginx", json.dumps(ACCESS), 0)
    known = Connections([access])

    def error(second: int, pid: int = 77, connection: int = 5) -> dict[str, Any]:
        at = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(access["time"] // 1_000_000 + second))
        found: dict[str, Any] = parser.record("nginx", f"{at} [error] {pid}#0: *{connection} upstream timed out", 0)
        return found

    during = error(-1)
    assert known.name(during) and during["request_id"] == "abc-1"
    # A kept connection has other requests before and after, and another process counts anew.
    assert not any(known.name(one) for one in (error(-60), error(5), error(-1, pid=78), error(-1, connection=6)))


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        ({"request_id": "abc"}, {"event": "request", "request_id": "abc"}, True),
        ({"request_id": "abc"}, {"event": "request", "request_id": "abcd"}, False),
        ({"request_id": "abc"}, {"event": "batch_failed", "request_ids": ["x", "abc"]}, True),
        ({"request_id": "abc"}, {"event": "batch_failed", "request_ids": ["x"]}, False),
        ({"request_id": "abc"}, "something about abc", True),
        ({"level": "warning"}, {"event": "request", "level": "info"}, False),
        ({"level": "warning"}, {"event": "request", "level": "error"}, True),
        ({"service": "ocr"}, {"event": "request", "service": "ocr"}, True),
        ({"service": "ocr"}, {"event": "request", "service": "echo"}, False),
        ({"device": "gpu0"}, {"event": "request"}, True),
        ({"device": "gpu1"}, {"event": "request"}, False),
    ],
)
def test_which_lines_are_wanted(given: dict[str, str], text: str | dict[str, Any], expected: bool) -> None:
    query = Query.of(given)
    found = Parser().record("uwsgi-emperor@gpu0", text if isinstance(text, str) else json.dumps(text), 0)
    assert (query.wants(found) and query.is_of_request(found)) is expected
