from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from inference.errors import ConfigError
from inference.models.echo import EchoModel


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"b": [1, 2.5, null], "a": "\xc3\xa9"}', "application/json", {"b": [1, 2.5, None], "a": "é"}),
        (b"[1]", "application/problem+json; charset=utf-8", [1]),
        ("é".encode("latin-1"), "text/plain; charset=latin-1", "é"),
        (b"\x00\x01", "image/png", {"bytes": 2, "sha256": hashlib.sha256(b"\x00\x01").hexdigest()}),
        (b"\x00\x01", "", {"bytes": 2, "sha256": hashlib.sha256(b"\x00\x01").hexdigest()}),
    ],
)
def test_body_comes_back_by_its_kind(echo: FlaskClient, body: bytes, content_type: str, expected: Any) -> None:
    response = echo.post("/v1/test", data=body, content_type=content_type or None)
    assert (response.status_code, response.get_json()["echo"]) == (200, expected)


def test_multipart_part_comes_back_by_its_own_kind(echo: FlaskClient) -> None:
    form = {"image": (io.BytesIO(b"[1]"), "x.json", "application/json")}
    assert echo.post("/v1/test", data=form).get_json()["echo"] == [1]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"[NaN]", "application/json"),
        (b"[1e999]", "application/json"),
        (b'"\\ud800"', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff", "text/plain"),
        (b"x", "text/plain; charset=klingon"),
    ],
)
def test_body_that_is_not_what_it_says(echo: FlaskClient, body: bytes, content_type: str) -> None:
    response = echo.post("/v1/test", data=body, content_type=content_type)
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


def test_suffix(make_app: Callable[..., Flask]) -> None:
    client = make_app(EchoModel(), options={"suffix": "!"}).test_client()
    assert client.post("/v1/test", data=b"hi", content_type="text/plain").get_json()["echo"] == "hi!"
    answer = client.post("/v1/test", data=json.dumps({"x": 1}), content_type="application/json").get_json()
    assert (answer["echo"], answer["suffix"]) == ({"x": 1}, "!")


def test_delay(make_app: Callable[..., Flask]) -> None:
    client = make_app(EchoModel(), options={"delay_ms": 50}).test_client()
    began = time.monotonic()
    assert client.post("/v1/test", data=b"x").get_json()["timing_ms"]["compute"] >= 50
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 1}, "option 'delay': no such name; did you mean delay_ms?"),
        ({"delay_ms": -1}, "option delay_ms=-1: must be a number of milliseconds"),
        ({"delay_ms": True}, "option delay_ms=True: must be"),
        ({"suffix": 1}, "option suffix=1: must be a string"),
    ],
)
def test_bad_options_stop_the_start(make_app: Callable[..., Flask], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_app(EchoModel(), options=options)
    assert message in str(caught.value)
