"""Hold answers against the document that describes them: ``/openapi.json``."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

Json = dict[str, Any]

#: nginx's number for a client that has left: nobody sees this answer.
NOBODY_SEES = 499
#: What references to the document begin with.
NAME = "urn:document"


def strict(part: Any) -> Any:
    """Make a part of a document ready for checking.

    Members that are not described are forbidden: clients ignore them, but whoever adds one describes it. References
    become absolute, whatever part of the document they stand in.
    """
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: strict(value) for key, value in part.items()}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = found["$ref"].replace("#/", f"{NAME}#/", 1)
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


class Headers(Protocol):
    """What all kinds of headers have in common: names in any case."""

    def get(self, name: str, /) -> str | None:
        """Give the value of a header."""


class Document:
    """An OpenAPI document that answers are held against.

    Args:
        document: the document.
    """

    def __init__(self, document: Json) -> None:
        self._document = strict(document)
        whole = Resource.from_contents(self._document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(NAME, whole)

    def has(self, path: str) -> bool:
        """Whether a path is described."""
        return path.partition("?")[0] in self._document["paths"]

    def check(self, method: str, path: str, status: int, headers: Headers, body: bytes) -> None:
        """Check one answer.

        Raises:
            AssertionError: it is not what the document says of it.
        """
        if status == NOBODY_SEES:
            return
        path = path.partition("?")[0]
        where = f"{method} {path}: {status}"
        item = self._document["paths"].get(path)
        operation = (item or {}).get(method.lower())
        if operation is None:
            # What is not described is refused: a path with 404, a method with 405.
            expected = 404 if item is None else 405
            assert status in {expected, *self._anywhere()}, f"{where} is not described; {expected} is expected"
            response = self._document["components"]["responses"][f"Problem{status}"]
        else:
            assert str(status) in operation["responses"], f"{where} is not described"
            response = self._resolved(operation["responses"][str(status)])
        self._check_headers(where, response, headers)
        if method == "HEAD":
            assert not body, f"{where}: a body, where there is none"
        else:
            self._check_body(where, response, headers.get("Content-Type") or "", body)

    def _anywhere(self) -> set[int]:
        """Statuses that any path may answer with, also one that is not described."""
        return {int(name.removeprefix("Problem")) for name in self._document["components"]["responses"]}

    def _resolved(self, item: Json) -> Json:
        while "$ref" in item:
            found: Any = self._document
            for part in item["$ref"].removeprefix(f"{NAME}#/").split("/"):
                found = found[part]
            item = found
        return item

    def _check_headers(self, where: str, response: Json, headers: Headers) -> None:
        for name, given in response.get("headers", {}).items():
            header = self._resolved(given)
            value: Any = headers.get(name)
            if value is None:
                assert not header.get("required"), f"{where}: the header {name} is missing"
                continue
            if header["schema"].get("type") == "integer":
                assert re.fullmatch("[0-9]+", value), f"{where}: {name}: {value!r} is no integer"
                value = int(value)
            self._check_schema(f"{where}: {name}", header["schema"], value)

    def _check_body(self, where: str, response: Json, content_type: str, body: bytes) -> None:
        if "content" not in response:
            assert not body, f"{where}: a body, where none is described: {body[:200]!r}"
            return
        media_type = content_type.split(";")[0]
        assert media_type in response["content"], f"{where}: the media type {media_type!r} is not described"
        self._check_schema(where, response["content"][media_type]["schema"], json.loads(body))

    def _check_schema(self, where: str, schema: Json, value: Any) -> None:
        validator = Draft202012Validator(schema, registry=self._registry, format_checker=FormatChecker())
        wrong = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
        assert not wrong, f"{where}: {'; '.join(wrong)}"
