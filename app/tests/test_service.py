from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from doubles import LogLines, PuppetModel
from flask import Flask
from flask.testing import FlaskClient
from inference import errors
from werkzeug.exceptions import NotFound
from werkzeug.test import TestResponse

PREFIX = "urn:inference-fleet:problem:"


def problem(response: TestResponse, status: int, slug: str) -> dict[str, Any]:
    """Check that a response is a well-formed problem and give its members."""
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    members: dict[str, Any] = response.get_json(force=True)
    assert set(members) == {"type", "title", "status", "detail", "request_id"}
    assert (members["type"], members["status"]) == (PREFIX + slug, status)
    assert members["request_id"] == response.headers["X-Request-ID"]
    assert members["detail"]
    return members


def body_of(kind: str, data: bytes) -> dict[str, Any]:
    """Make the arguments of a request with a raw or a multipart body, without the test client's temporary files."""
    if kind == "raw":
        return {"data": data}
    head = b'--b\r\nContent-Disposition: form-data; name="thing"; filename="big.bin"\r\n\r\n'
    return {"data": head + data + b"\r\n--b--\r\n", "content_type": "multipart/form-data; boundary=b"}


def test_raw_body_is_answered_with_all_members(client: FlaskClient) -> None:
    response = client.post("/v1/test", data=b"12345", headers={"X-Request-ID": "me-1"})
    assert (response.status_code, response.content_type) == (200, "application/json")
    answer = response.get_json()
    timing = answer.pop("timing_ms")
    assert answer == {
        "request_id": "me-1",
        "model": {"name": "puppet", "release": "r1"},
        "device": "cpu7",
        "length": 5,
    }
    assert set(timing) == {"queue", "decode", "compute", "total"}
    assert all(isinstance(value, float) and value >= 0 and value == round(value, 3) for value in timing.values())
    assert timing["queue"] + timing["decode"] + timing["compute"] <= timing["total"] + 0.002


def test_members_keep_their_order(client: FlaskClient) -> None:
    names = re.findall(r'"(\w+)":', client.post("/v1/test", data=b"x").get_data(as_text=True))
    assert [name for name in names if name in {"request_id", "model", "device", "length", "timing_ms"}] == [
        "request_id",
        "model",
        "device",
        "length",
        "timing_ms",
    ]


def test_text_is_sent_as_utf8(echo: FlaskClient) -> None:
    response = echo.post("/v1/test", data="größer 文".encode(), content_type="text/plain; charset=utf-8")
    assert "größer 文".encode() in response.data


def test_multipart_file_reaches_the_model_with_its_own_type(client: FlaskClient, puppet: PuppetModel) -> None:
    form = {"thing": (io.BytesIO(b"abc"), "a.png", "image/png"), "note": "x"}
    response = client.post("/v1/test", data=form, content_type="multipart/form-data")
    assert response.get_json()["length"] == 3
    assert puppet.content_types[-1] == "image/png"


def test_multipart_field_without_file_name_keeps_its_bytes(client: FlaskClient, puppet: PuppetModel) -> None:
    value = bytes(range(256)) * 4000  # no text, and over Werkzeug's 500 kB for fields
    body = b'--b\r\nContent-Disposition: form-data; name="thing"\r\n\r\n' + value + b"\r\n--b--\r\n"
    response = client.post("/v1/test", data=body, content_type="multipart/form-data; boundary=b")
    assert response.status_code == 200
    assert puppet.predicted[-1] == value


@pytest.mark.parametrize("kind", ["raw", "multipart"])
def test_body_of_90_megabytes_is_taken(client: FlaskClient, kind: str) -> None:
    size = 90_000_000
    # Line ends all through are the hardest case for a parser that looks for boundaries.
    response = client.post("/v1/test", **body_of(kind, b"\r\n" * (size // 2)))
    assert response.get_json()["length"] == size


@pytest.mark.parametrize("kind", ["raw", "multipart"])
def test_body_over_the_limit(make_app: Callable[..., Flask], puppet: PuppetModel, kind: str) -> None:
    client = make_app(puppet, max_body_bytes=1000).test_client()
    members = problem(client.post("/v1/test", **body_of(kind, bytes(1001))), 413, "body-too-large")
    assert "allowed are 1000" in members["detail"]
    assert client.post("/v1/test", data=bytes(1000)).status_code == 200


def test_multipart_without_the_field_names_it_and_those_seen(client: FlaskClient) -> None:
    response = client.post("/v1/test", data={"image": (io.BytesIO(b"abc"), "a.png"), "note": "x"})
    detail = problem(response, 400, "unreadable-input")["detail"]
    assert "'thing' exactly once; its fields are: 'note', 'image'." in detail


def test_multipart_with_the_field_twice(client: FlaskClient) -> None:
    response = client.post("/v1/test", data={"thing": [(io.BytesIO(b"a"), "a"), (io.BytesIO(b"b"), "b")]})
    assert "'thing', 'thing'" in problem(response, 400, "unreadable-input")["detail"]


@pytest.mark.parametrize(
    ("body", "content_type", "detail"),
    [
        (b"", "", "The body is empty"),
        (b"", "multipart/form-data; boundary=b", "its fields are: none"),
        (b"abc", "multipart/form-data", "names no boundary"),
        (b"abc", "multipart/form-data; boundary=b", "ends early"),
        (b'--b\r\nContent-Disposition: form-data; name="thing"\r\n\r\nabc', "multipart/form-data; boundary=b", "early"),
        (
            b'--b\r\nContent-Disposition: form-data; name="thing"\r\n\r\n\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            "'thing' is empty",
        ),
        (b"--b\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b", "The form is damaged"),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 101 + b"--b--\r\n",
            "multipart/form-data; boundary=b",
            "more than 100 parts",
        ),
    ],
)
def test_damaged_bodies(client: FlaskClient, body: bytes, content_type: str, detail: str) -> None:
    response = client.post("/v1/test", data=body, content_type=content_type or None)
    assert detail in problem(response, 400, "unreadable-input")["detail"]


def test_body_that_ends_early(client: FlaskClient) -> None:
    response = client.post("/v1/test", data=b"abc", environ_overrides={"CONTENT_LENGTH": "5"})
    assert problem(response, 400, "unreadable-input")["detail"] == "The body ended after 3 of 5 bytes."


def test_body_whose_reading_fails(client: FlaskClient) -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("timeout during read")

    overrides = {"CONTENT_LENGTH": "5", "wsgi.input": Gone()}
    response = client.post("/v1/test", environ_overrides=overrides)
    assert problem(response, 400, "unreadable-input")["detail"] == "The body could not be read after 0 bytes."


@pytest.mark.parametrize("length", ["x", "-1", "1.5", "9" * 30])
def test_length_that_is_no_number(client: FlaskClient, length: str) -> None:
    response = client.post("/v1/test", environ_overrides={"CONTENT_LENGTH": length})
    assert "is not a number of bytes" in problem(response, 400, "unreadable-input")["detail"]


def test_chunked_body_of_unknown_end_is_refused(client: FlaskClient) -> None:
    overrides = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(b"3\r\nabc\r\n0\r\n\r\n")}
    problem(client.post("/v1/test", environ_overrides=overrides), 411, "length-required")


def test_chunked_body_that_nginx_has_put_together_is_read(client: FlaskClient) -> None:
    overrides = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "3", "wsgi.input": io.BytesIO(b"abc")}
    assert client.post("/v1/test", environ_overrides=overrides).get_json()["length"] == 3


def test_chunked_body_that_the_server_ends_is_read_within_the_limit(
    make_app: Callable[..., Flask], puppet: PuppetModel
) -> None:
    client = make_app(puppet, max_body_bytes=3).test_client()
    for body, status in ((b"abc", 200), (b"abcd", 413)):
        overrides = {
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input_terminated": True,
            "wsgi.input": io.BytesIO(body),
        }
        assert client.post("/v1/test", environ_overrides=overrides).status_code == status


@pytest.mark.parametrize(("method", "path"), [("POST", "/nowhere"), ("GET", "/v1/test"), ("POST", "/healthz")])
def test_unwanted_body_is_read_away(client: FlaskClient, method: str, path: str) -> None:
    stream = io.BytesIO(bytes(5_000_000))
    client.open(path, method=method, environ_overrides={"CONTENT_LENGTH": "5000000", "wsgi.input": stream})
    assert stream.tell() == 5_000_000


def test_reading_away_stops_at_twice_the_limit(make_app: Callable[..., Flask], puppet: PuppetModel) -> None:
    client = make_app(puppet, max_body_bytes=1_000_000).test_client()
    stream = io.BytesIO(bytes(5_000_000))
    response = client.post("/v1/test", environ_overrides={"CONTENT_LENGTH": "5000000", "wsgi.input": stream})
    problem(response, 413, "body-too-large")
    assert stream.tell() == 2_000_000


def test_unknown_path(client: FlaskClient) -> None:
    assert "'/nowhere'" in problem(client.get("/nowhere?secret=1"), 404, "not-found")["detail"]


def test_method_not_allowed_lists_the_allowed(client: FlaskClient) -> None:
    response = client.get("/v1/test")
    assert "allowed are OPTIONS, POST" in problem(response, 405, "method-not-allowed")["detail"]
    assert response.headers["Allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnreadableInput, 400),
        (errors.UnsupportedInput, 415),
        (errors.TooManyPixels, 422),
        (errors.Busy, 503),
        (errors.OverTime, 504),
    ],
)
def test_problems_of_the_model_are_answered(
    client: FlaskClient, puppet: PuppetModel, error: type[errors.Problem], status: int
) -> None:
    puppet.failure = error("Because.", retry_after=7)
    response = client.post("/v1/test", data=b"x")
    assert problem(response, status, error.slug)["detail"] == "Because."
    assert response.headers["Retry-After"] == "7"


def test_failure_of_the_model_is_logged_and_not_shown(
    client: FlaskClient, puppet: PuppetModel, log_lines: LogLines
) -> None:
    puppet.failure = RuntimeError("password=hunter2")
    response = client.post("/v1/test", data=b"x")
    problem(response, 500, "internal-error")
    assert b"hunter2" not in response.data
    (record,) = [record for record in log_lines.records if record.getMessage() == "request_failed"]
    assert record.exc_info
    assert record.exc_info[1] is puppet.failure


def test_answer_that_json_cannot_carry_is_a_failure(
    client: FlaskClient, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puppet, "encode", lambda _: {"length": float("nan")})
    problem(client.post("/v1/test", data=b"x"), 500, "internal-error")


@pytest.mark.undescribed
def test_errors_of_werkzeug_become_problems(make_app: Callable[..., Flask], puppet: PuppetModel) -> None:
    app = make_app(puppet)
    app.add_url_rule("/teapot", view_func=lambda: app.aborter(418))
    members = problem(app.test_client().get("/teapot"), 418, "i-m-a-teapot")
    assert members["title"] == "I'm a teapot"


@pytest.mark.parametrize("given", ["a", "A.b_c~d:e+f=g/h-1", "x" * 128])
def test_request_id_of_the_client_is_kept(client: FlaskClient, given: str) -> None:
    response = client.post("/v1/test", data=b"x", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == response.get_json()["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", 'a"b', "ä", "a\tb"])
def test_request_id_is_made_when_there_is_no_good_one(client: FlaskClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    first = client.post("/v1/test", data=b"x", headers=headers).headers["X-Request-ID"]
    second = client.get("/healthz", headers=headers).headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert re.fullmatch("[0-9a-f]{32}", second)
    assert first != second


def test_queue_time_counts_from_the_hand_over(client: FlaskClient) -> None:
    headers = {"X-Request-Start": f"t={time.time() - 2:.3f}"}
    timing = client.post("/v1/test", data=b"x", headers=headers).get_json()["timing_ms"]
    assert 1999 <= timing["queue"] <= 4000
    assert timing["total"] >= timing["queue"]


@pytest.mark.parametrize("start", ["t=1", "1700000000", "t=x", "t=-1", "t=99999999999", "t=1e9", ""])
def test_queue_time_is_zero_when_the_hand_over_is_not_believable(client: FlaskClient, start: str) -> None:
    response = client.post("/v1/test", data=b"x", headers={"X-Request-Start": start})
    assert response.get_json()["timing_ms"]["queue"] < 100


def test_request_that_waited_too_long_is_not_computed(client: FlaskClient, puppet: PuppetModel) -> None:
    computed = len(puppet.predicted)
    headers = {"X-Request-Start": f"t={time.time() - 61:.3f}"}
    response = client.post("/v1/test", data=b"x", headers=headers)
    assert "deadline" in problem(response, 504, "over-time")["detail"]
    assert len(puppet.predicted) == computed


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e3", "inf", "1 2", "9" * 13])
def test_malformed_deadline_is_refused(client: FlaskClient, value: str) -> None:
    response = client.post("/v1/test", data=b"x", headers={"X-Request-Deadline-Ms": value})
    assert value[:40] in problem(response, 400, "unreadable-input")["detail"]


@pytest.mark.parametrize(("value", "status"), [("0", 504), ("0.001", 504), ("20000", 200), ("999999999999", 200)])
def test_deadline_of_the_client_counts_when_it_is_earlier(client: FlaskClient, value: str, status: int) -> None:
    response = client.post("/v1/test", data=b"x", headers={"X-Request-Deadline-Ms": value})
    assert response.status_code == status


def test_deadline_of_the_client_begins_with_its_arrival_at_nginx(client: FlaskClient) -> None:
    headers = {"X-Request-Deadline-Ms": "5000", "X-Request-Start": f"t={time.time() - 6:.3f}"}
    problem(client.post("/v1/test", data=b"x", headers=headers), 504, "over-time")


def test_deadline_of_the_client_is_no_way_around_that_of_the_service(
    make_app: Callable[..., Flask], puppet: PuppetModel
) -> None:
    headers = {"X-Request-Deadline-Ms": "60000", "X-Request-Start": f"t={time.time() - 3:.3f}"}
    app = make_app(puppet, timeout_seconds=2)
    problem(app.test_client().post("/v1/test", data=b"x", headers=headers), 504, "over-time")


def test_options_and_other_methods_of_the_route_are_still_flasks(client: FlaskClient) -> None:
    response = client.options("/v1/test")
    # In any order: Flask keeps a set.
    assert (response.status_code, set(response.headers["Allow"].split(", "))) == (200, {"OPTIONS", "POST"})
    assert response.headers["X-Request-ID"]


@pytest.mark.undescribed
def test_error_of_werkzeug_in_the_model_becomes_a_problem(client: FlaskClient, puppet: PuppetModel) -> None:
    puppet.failure = NotFound()
    members = problem(client.post("/v1/test", data=b"x"), 404, "not-found")
    assert members["detail"] == "There is nothing at '/v1/test'."
    puppet.failure = None
    assert client.post("/v1/test", data=b"x").status_code == 200


def test_answer_has_the_headers_of_every_answer(client: FlaskClient) -> None:
    response = client.post("/v1/test", data=b"x", headers={"X-Request-ID": "me"})
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Length"] == str(len(response.data))
    assert response.headers["X-Request-ID"] == "me"
