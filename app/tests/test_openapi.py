"""The description of the API is valid, complete, and what the answers are held against."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import pytest
from described import Document
from doubles import PuppetModel
from flask import Flask
from flask.testing import FlaskClient
from inference import errors, openapi
from inference.config import RESERVED_ROUTES, Config
from inference.description import Body, Description
from inference.errors import ConfigError, Problem
from inference.model import Model
from inference.models.echo import EchoModel
from inference.models.ocr import OcrModel
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

Json = dict[str, Any]


class Silent(PuppetModel):
    """A model that does not describe itself."""

    def describe(self) -> Description:
        return Model.describe(self)


class Described(PuppetModel):
    """A model that says what a test wants."""

    said: ClassVar[Description]

    def describe(self) -> Description:
        return self.said


def described(config: Config, **said: Any) -> Json:
    model = Described()
    model.said = Description(**said)  # type: ignore[misc]
    return openapi.document(config, model)


@pytest.mark.parametrize("model", [EchoModel, OcrModel, PuppetModel, Silent])
@pytest.mark.parametrize("mode", ["process", "batch"])
def test_document_is_valid(config: Config, model: type[Model[Any, Any]], mode: str) -> None:
    document = openapi.document(Config(mode=mode, channel=Path("/x")), model())
    validate(document)
    assert document["openapi"].startswith("3.1.")


def test_document_is_served(client: FlaskClient) -> None:
    response = client.get("/openapi.json")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.get_json()["info"]["title"] == "test: Count bytes"
    validate(response.get_json())


def test_all_routes_are_described(make_app: Callable[..., Flask], puppet: PuppetModel) -> None:
    app = make_app(puppet)
    paths = app.test_client().get("/openapi.json").get_json()["paths"]
    rules = {rule.rule: rule.methods or set() for rule in app.url_map.iter_rules()}
    methods = {path: {name.upper() for name in item if name != "parameters"} for path, item in paths.items()}
    assert methods == rules
    assert set(methods) == {"/v1/test", *RESERVED_ROUTES}


def test_all_problems_of_the_app_are_described(config: Config) -> None:
    known = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Problem)]
    assert len(known) > 10
    responses = openapi.document(config, PuppetModel())["components"]["responses"]
    for one in known:
        if one is errors.ClientLeft:
            continue
        schema = responses[f"Problem{one.status}"]["content"]["application/problem+json"]["schema"]
        assert openapi.TYPE_PREFIX + one.slug in schema["properties"]["type"]["enum"]


def examples_in(part: Any) -> list[tuple[Json, Any]]:
    """Each schema with each of its examples."""
    found: list[tuple[Json, Any]] = []
    if isinstance(part, list):
        return [pair for one in part for pair in examples_in(one)]
    if not isinstance(part, dict):
        return found
    if isinstance(part.get("schema"), dict):
        values = [one["value"] for one in part.get("examples", {}).values()]
        found += [(part["schema"], value) for value in [*values, *([part["example"]] if "example" in part else [])]]
    return found + [
        pair for key, one in part.items() if key not in {"example", "examples"} for pair in examples_in(one)
    ]


@pytest.mark.parametrize("model", [EchoModel, OcrModel, PuppetModel])
def test_examples_are_as_the_schemas_say(config: Config, model: type[Model[Any, Any]]) -> None:
    document = openapi.document(config, model())
    pairs = examples_in({"paths": document["paths"], "components": document["components"]})
    assert len(pairs) > 20
    for schema, example in pairs:
        whole = {"components": document["components"], **schema}
        assert [error.message for error in Draft202012Validator(whole).iter_errors(example)] == []


def test_example_of_a_json_body_is_answered(echo: FlaskClient) -> None:
    document = echo.get("/openapi.json").get_json()
    operation = document["paths"]["/v1/test"]["post"]
    content = operation["requestBody"]["content"]
    answer = echo.post("/v1/test", json=content["application/json"]["example"]).get_json()
    assert answer["echo"] == operation["responses"]["200"]["content"]["application/json"]["example"]["echo"]
    assert echo.post("/v1/test", data=content["text/plain"]["example"], content_type="text/plain").status_code == 200


# ---- what a model says


@dataclass
class Found:
    """As a dataclass."""

    length: int
    words: list[str]


class FoundDict(TypedDict):
    """As a TypedDict."""

    length: int
    words: list[str]


@pytest.mark.parametrize("answer", [Found, FoundDict])
def test_answer_may_be_any_class_with_typed_fields(config: Config, answer: type) -> None:
    document = described(config, answer=answer)
    validate(document)
    found = document["components"]["schemas"]["Answer"]
    assert list(found["properties"]) == ["request_id", "model", "device", "length", "words", "timing_ms"]
    assert set(found["required"]) == set(found["properties"])
    assert found["properties"]["words"] == {"type": "array", "items": {"type": "string"}}
    assert answer.__name__ not in document["components"]["schemas"]


def test_class_that_is_called_as_one_of_the_service(config: Config) -> None:
    document = described(config, answer=type("Answer", (Found,), {"__annotations__": {"length": int}}))
    validate(document)
    answer = document["paths"]["/v1/test"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    name = answer["$ref"].rsplit("/", 1)[1]
    assert {"request_id", "length", "timing_ms"} <= set(document["components"]["schemas"][name]["properties"])


def test_body_may_be_a_class(config: Config) -> None:
    document = described(config, bodies=[Body("application/json", Found)])
    validate(document)
    content = document["paths"]["/v1/test"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Found"}


def test_own_problem_of_a_model_is_described(config: Config) -> None:
    class TooQuiet(Problem):
        """422: nobody speaks."""

        status = 422
        title = "Too Quiet"
        slug = "too-quiet"

    responses = described(config, problems=[TooQuiet])["paths"]["/v1/test"]["post"]["responses"]
    assert "422" in responses
    assert "415" not in responses


def test_model_that_says_nothing_may_answer_anything(make_app: Callable[..., Flask]) -> None:
    assert make_app(Silent()).test_client().post("/v1/test", data=b"x").get_json()["length"] == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"type": "array"}, "an object with properties"), (complex, "without a JSON Schema"), (int, "an object")],
)
def test_description_that_cannot_be_used_stops_the_start(config: Config, answer: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"model 'puppet' describes .*{said}"):
        described(config, answer=answer)


# ---- the check itself: it fails when code and description part ways


def test_member_that_is_not_described(
    client: FlaskClient, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puppet, "encode", lambda output: {"length": 1, "colour": "red"})
    with pytest.raises(AssertionError, match=r"POST /v1/test: 200: .*'colour' was unexpected"):
        client.post("/v1/test", data=b"x")


def test_member_of_another_type(client: FlaskClient, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puppet, "encode", lambda output: {"length": "one"})
    with pytest.raises(AssertionError, match=r"length: 'one' is not of type 'integer'"):
        client.post("/v1/test", data=b"x")


def test_member_that_is_missing(client: FlaskClient, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puppet, "encode", lambda output: {})
    with pytest.raises(AssertionError, match="'length' is a required property"):
        client.post("/v1/test", data=b"x")


def test_status_that_is_not_described(client: FlaskClient, puppet: PuppetModel) -> None:
    class Teapot(Problem):
        """418."""

        status = 418
        slug = "teapot"

    puppet.failure = Teapot()
    with pytest.raises(AssertionError, match="POST /v1/test: 418 is not described"):
        client.post("/v1/test", data=b"x")


def test_problem_of_a_type_that_is_not_described(client: FlaskClient, puppet: PuppetModel) -> None:
    class Odd(Problem):
        """503, of a kind of its own."""

        status = 503
        slug = "odd"

    puppet.failure = Odd(retry_after=1)
    with pytest.raises(AssertionError, match=r"type: 'urn:inference-fleet:problem:odd' is not one of"):
        client.post("/v1/test", data=b"x")


DOCUMENT: Json = {
    "paths": {
        "/x": {"get": {"responses": {"200": {"headers": {"A": {"required": True, "schema": {"type": "integer"}}}}}}}
    },
    "components": {"schemas": {}, "responses": {"Problem404": {}, "Problem405": {}}},
}


@pytest.mark.parametrize(
    ("method", "path", "status", "headers", "body", "said"),
    [
        ("GET", "/x", 200, {}, b"", "the header A is missing"),
        ("GET", "/x", 200, {"A": "one"}, b"", "'one' is no integer"),
        ("GET", "/x", 200, {"A": "1"}, b"text", "a body, where none is described"),
        ("GET", "/y", 200, {"A": "1"}, b"", "404 is expected"),
        ("POST", "/x", 200, {"A": "1"}, b"", "405 is expected"),
    ],
)
def test_the_check_sees(method: str, path: str, status: int, headers: dict[str, str], body: bytes, said: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        Document(DOCUMENT).check(method, path, status, headers, body)


def test_the_check_lets_pass_what_is_described() -> None:
    Document(DOCUMENT).check("GET", "/x", 200, {"A": "1"}, b"")
    Document(json.loads(json.dumps(DOCUMENT))).check("POST", "/x", 405, {}, b"")
