"""Fixtures of the app's tests: an app around a model that the test controls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
from described import Document
from doubles import Clock, LogLines, PuppetModel
from flask.testing import FlaskClient
from inference.app import InferenceApp, create_app
from inference.config import Config
from inference.model import Model
from inference.models.echo import EchoModel
from werkzeug.test import TestResponse


class CheckingClient(FlaskClient):
    """Hold each answer against the description that the app gives of itself."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        """Send a request.

        Raises:
            AssertionError: the answer is not as described.
        """
        response = super().open(*args, **kwargs)
        sent = response.request
        self.document.check(sent.method, sent.path, response.status_code, response.headers, response.data)
        return response

    @cached_property
    def document(self) -> Document:
        """The description."""
        assert isinstance(self.application, InferenceApp)
        return Document(self.application.description)


@pytest.fixture(autouse=True)
def every_answer_is_as_described(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check all that any test gets from a test client."""
    if not request.node.get_closest_marker("undescribed"):
        monkeypatch.setattr(InferenceApp, "test_client_class", CheckingClient)


@pytest.fixture
def config() -> Config:
    return Config(service="test", route="/v1/test", release="r1", device="cpu7", accelerator="cpu")


@pytest.fixture
def puppet() -> PuppetModel:
    return PuppetModel()


@pytest.fixture
def make_app(config: Config) -> Callable[..., InferenceApp]:
    """Build an app around a model, with settings that differ from ``config``."""

    def make(model: Model[Any, Any], **settings: Any) -> InferenceApp:
        return create_app(replace(config, **settings), model)

    return make


@pytest.fixture
def client(make_app: Callable[..., InferenceApp], puppet: PuppetModel) -> FlaskClient:
    """Talk to the puppet model."""
    return make_app(puppet).test_client()


@pytest.fixture
def echo(make_app: Callable[..., InferenceApp]) -> FlaskClient:
    """Talk to the echo model."""
    return make_app(EchoModel()).test_client()


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """Collect what the package logs, whatever its level."""
    handler = LogLines()
    logger = logging.getLogger("inference")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Move the time ahead without waiting."""
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock
