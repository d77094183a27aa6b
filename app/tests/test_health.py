from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from doubles import Clock, PuppetModel
from flask import Flask
from flask.testing import FlaskClient
from inference.errors import ArtifactError, UnreadableInput
from inference.models.echo import EchoModel

PLACE = {"service": "test", "device": "cpu7", "release": "r1"}


def test_alive(client: FlaskClient) -> None:
    response = client.get("/healthz")
    assert (response.status_code, response.get_json()) == (200, {"status": "alive", **PLACE})
    assert response.headers["Cache-Control"] == "no-store"


def test_ready_says_since_when(client: FlaskClient) -> None:
    answer = client.get("/readyz").get_json()
    age = answer.pop("age_seconds")
    last = datetime.strptime(answer.pop("last_success"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert answer == {"status": "ready", **PLACE}
    assert 0 <= age < 30
    assert abs((datetime.now(timezone.utc) - last).total_seconds() - age) < 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version"])
def test_head_has_headers_and_no_body(client: FlaskClient, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.data) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


def test_sample_runs_again_only_when_the_last_success_is_old(
    client: FlaskClient, puppet: PuppetModel, clock: Clock
) -> None:
    assert puppet.predicted == [b"sample"]
    assert client.get("/readyz").status_code == 200
    assert puppet.predicted == [b"sample"]
    clock.ahead = 31
    assert client.get("/readyz").get_json()["age_seconds"] < 1
    assert puppet.predicted == [b"sample", b"sample"]


def test_not_ready_while_the_sample_fails(client: FlaskClient, puppet: PuppetModel, clock: Clock) -> None:
    puppet.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
    clock.ahead = 31
    response = client.get("/readyz")
    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert response.get_json(force=True)["type"] == "urn:inference-fleet:problem:not-ready"
    assert int(response.headers["Retry-After"]) >= 1
    assert client.get("/healthz").status_code == 200
    puppet.failure = None
    clock.ahead = 33
    assert client.get("/readyz").status_code == 200


def test_not_ready_when_the_sample_has_another_answer(
    client: FlaskClient, puppet: PuppetModel, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puppet, "encode", lambda _: {"length": 7})
    clock.ahead = 31
    assert client.get("/readyz").status_code == 503


def test_failure_of_the_model_makes_not_ready_until_the_sample_works(
    client: FlaskClient, puppet: PuppetModel, clock: Clock
) -> None:
    puppet.failure = RuntimeError("broken")
    assert client.post("/v1/test", data=b"x").status_code == 500
    assert client.get("/readyz").status_code == 503
    # A failing sample is not repeated at once, however often somebody asks.
    computed = len(puppet.predicted)
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/test", data=b"x").status_code == 503
    assert len(puppet.predicted) == computed
    puppet.failure = None
    clock.ahead = 2
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/test", data=b"x").status_code == 200


def test_failure_of_the_client_leaves_it_ready(client: FlaskClient, puppet: PuppetModel) -> None:
    assert client.post("/v1/test", data=b"unreadable").status_code == 400
    puppet.failure = UnreadableInput("seen late")
    assert client.post("/v1/test", data=b"x").status_code == 400
    assert client.get("/readyz").status_code == 200
    assert puppet.predicted == [b"sample", b"x"]


def test_version_without_a_release_folder(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    answer = make_app(EchoModel(), artifacts=tmp_path / "models").test_client().get("/version").get_json()
    assert answer.pop("version").count(".") == 2
    answer.pop("torch", None)  # another test of this process may have loaded it
    expected = {**PLACE, "model": "echo", "mode": "process", "torch_device": "cpu", "python": platform.python_version()}
    assert answer == expected


def test_version_tells_the_facts_of_the_release(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    facts = {"id": "r1", "commit": "abc"}
    (tmp_path / "REVISION.json").write_text(json.dumps(facts))
    answer = make_app(EchoModel(), artifacts=tmp_path / "models").test_client().get("/version").get_json()
    assert answer["revision"] == facts


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_release_facts_stop_the_start(make_app: Callable[..., Flask], tmp_path: Path, text: str) -> None:
    (tmp_path / "REVISION.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"REVISION\.json: "):
        make_app(EchoModel(), artifacts=tmp_path / "models")
