from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest
from doubles import LogLines, PuppetModel
from flask.testing import FlaskClient
from inference import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Log as a worker does, and put logging back as pytest needs it."""
    root, package = logging.getLogger(), logging.getLogger("inference")
    before = (root.handlers[:], root.level, package.level)
    stream = io.StringIO()
    logs.configure("info", {"service": "s", "device": "d", "release": "r"}, stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_request_is_one_line_with_all_facts(client: FlaskClient, stream: io.StringIO) -> None:
    client.post("/v1/test?token=secret", data=b"private", headers={"X-Request-ID": "me"})
    (line,) = lines(stream)
    timing = line.pop("timing_ms")
    assert isinstance(timing, dict)
    assert set(timing) == {"queue", "decode", "compute", "total"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert isinstance(line.pop("bytes_out"), int)
    assert line == {
        "level": "info",
        "event": "request",
        "logger": "inference.lifecycle",
        "request_id": "me",
        "service": "s",
        "device": "d",
        "release": "r",
        "method": "POST",
        "path": "/v1/test",
        "status": 200,
        "bytes_in": 7,
        "client": "127.0.0.1",
    }
    assert "secret" not in stream.getvalue()
    assert "private" not in stream.getvalue()


def test_error_line_names_the_problem(client: FlaskClient, stream: io.StringIO) -> None:
    client.post("/v1/test", data=b"unreadable")
    (line,) = lines(stream)
    assert (line["status"], line["problem"], line["level"]) == (400, "unreadable-input", "info")


def test_failure_has_its_traceback_under_the_same_id(
    client: FlaskClient, puppet: PuppetModel, stream: io.StringIO
) -> None:
    puppet.failure = RuntimeError("two\nlines")
    client.post("/v1/test", data=b"x", headers={"X-Request-ID": "me"})
    failed, request = lines(stream)
    assert (failed["event"], request["event"]) == ("request_failed", "request")
    assert failed["request_id"] == request["request_id"] == "me"
    assert "RuntimeError: two\nlines" in str(failed["traceback"])
    assert (request["level"], request["status"]) == ("error", 500)


def test_health_checks_are_logged_at_debug_unless_they_fail(
    client: FlaskClient, puppet: PuppetModel, log_lines: LogLines
) -> None:
    for path in ("/healthz", "/readyz", "/version"):
        client.get(path)
    puppet.failure = RuntimeError("broken")
    client.post("/v1/test", data=b"x")
    client.get("/readyz")
    levels = [record.levelname for record in log_lines.records if record.getMessage() == "request"]
    assert levels == ["DEBUG", "DEBUG", "DEBUG", "ERROR", "WARNING"]


def test_id_does_not_outlive_its_request(client: FlaskClient, stream: io.StringIO) -> None:
    client.post("/v1/test", data=b"x", headers={"X-Request-ID": "me"})
    logging.getLogger("inference").info("later")
    assert "request_id" not in lines(stream)[-1]


def test_libraries_and_warnings_are_heard_from_warning_up(stream: io.StringIO) -> None:
    logging.getLogger("PIL").info("chatter")
    logging.getLogger("PIL").warning("odd")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    odd, old = lines(stream)
    assert (odd["event"], odd["logger"], odd["level"]) == ("odd", "PIL", "warning")
    assert "old" in str(old["event"])


def test_facts_that_json_cannot_express_are_logged_as_text(stream: io.StringIO) -> None:
    logging.getLogger("inference").info("x", extra={"facts": {"value": sys}})
    assert "module 'sys'" in str(lines(stream)[0]["value"])


def test_path_that_is_no_ascii_is_logged_as_it_was_sent(client: FlaskClient, stream: io.StringIO) -> None:
    client.get("/größe")
    (line,) = lines(stream)
    assert (line["path"], line["status"]) == ("/größe", 404)


def test_time_has_milliseconds_and_the_second_it_belongs_to() -> None:
    assert logs.timestamp(1767323045.0) == "2026-01-02T03:04:05.000Z"
    assert logs.timestamp(1767323045.9996) == "2026-01-02T03:04:05.999Z"
    assert logs.timestamp(1767323046.25) == "2026-01-02T03:04:06.250Z"


def test_fact_of_a_record_stands_in_place_of_the_request_id_of_the_thread(stream: io.StringIO) -> None:
    logging.getLogger("inference").info("x", extra={"facts": {"request_id": "other"}})
    assert lines(stream)[0]["request_id"] == "other"
