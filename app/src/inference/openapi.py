"""Describe the API of a service as an OpenAPI 3.1 document, from its types, its errors and what its model says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import msgspec

from inference import errors
from inference.answers import Alive, Answer, ProblemDetails, Ready, Version
from inference.config import DEADLINE_PATTERN, Config
from inference.description import Body, Description
from inference.errors import ConfigError, Problem
from inference.model import Model
from inference.problems import TYPE_PREFIX

Json = dict[str, Any]

#: What nginx answers by itself, beside what the app does too: status, last part of the problem's type, title.
FROM_NGINX = (
    (400, "unreadable-input", "Unreadable Input"),
    (404, "not-found", "Not Found"),
    (405, "method-not-allowed", "Method Not Allowed"),
    (408, "request-timeout", "Request Timeout"),
    (411, "length-required", "Length Required"),
    (413, "body-too-large", "Body Too Large"),
    (414, "uri-too-long", "URI Too Long"),
    (429, "busy", "Too Many Requests"),
    (431, "headers-too-large", "Request Header Fields Too Large"),
    (500, "internal-error", "Internal Server Error"),
    (501, "not-implemented", "Not Implemented"),
    (503, "busy", "Service Unavailable"),
    (504, "over-time", "Over Time"),
    (505, "version-not-supported", "HTTP Version Not Supported"),
)
#: Any route may answer with these: nginx does before the app sees the request, or in its place.
ANYWHERE = (400, 408, 411, 413, 414, 429, 431, 500, 501, 503, 504, 505)
#: Errors of the app that any model's route may answer with. Nobody sees a ClientLeft.
OF_THE_SERVICE: tuple[type[Problem], ...] = (
    errors.UnreadableInput,
    errors.LengthRequired,
    errors.BodyTooLarge,
    Problem,
    errors.Busy,
    errors.NotReady,
    errors.OverTime,
)
#: What the detail of an error looks like, where a sentence of it says more than its title.
DETAILS = {
    "unreadable-input": "The form must have the field 'image' exactly once; its fields are: 'file'.",
    "length-required": "Send the body with Content-Length instead of in chunks.",
    "body-too-large": "The body has 104857601 bytes or more; allowed are 104857600.",
    "unsupported-input": "The body is not an image of a supported format: PNG, JPEG, TIFF, WebP, BMP.",
    "too-many-pixels": "The image has 12000 x 9000 = 108000000 pixels; the limit is 50000000.",
    "internal-error": "The server failed on this request; its log has the reason under the request id.",
    "not-ready": "The inference with a known answer failed on this device; the log says why.",
    "busy": "64 requests wait for this device already; its queue takes no more.",
    "over-time": "The request waited past its deadline; it was not computed.",
    "method-not-allowed": "GET is not allowed here; allowed are OPTIONS, POST.",
    "not-found": "There is nothing at '/v1/nothing'.",
}
#: In examples, so that all devices of all hosts give the same document.
DEVICE = "gpu0"
REQUEST_ID = "05fa83a3d27be05ed67f2ddab51ab705"
BYTES = {"type": "string", "format": "binary", "minLength": 1}


def document(config: Config, model: Model[Any, Any]) -> Json:
    """Describe a service.

    Args:
        config: its settings.
        model: its model, after :meth:`~inference.model.Model.prepare`.

    Raises:
        ConfigError: the model describes itself by something else than types and schemas.
    """
    said = model.describe()
    schemas, components = _schemas(model, said)
    kinds = _kinds(said)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": f"{config.service}: {said.summary}",
            "version": metadata.version("inference"),
            "description": _text(config, model, said),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "Where this document came from."}],
        "tags": [{"name": "service"}, {"name": "operators"}],
        "paths": _paths(config, model, said, schemas),
        "components": {
            "schemas": components,
            "responses": {_name(status): _problem(status, found) for status, found in sorted(kinds.items())},
            "parameters": PARAMETERS,
            "headers": HEADERS,
        },
    }


# ---- words that stand in many places -------------------------------------------------------------------------------

PARAMETERS: Json = {
    "X-Request-ID": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "Stands in the answer and in every log line. Kept when it has 1 to 128 of "
        "`A-Z a-z 0-9 . _ ~ : + = / -`; another one is replaced.",
        "schema": {"type": "string"},
        "example": "order-17",
    },
    "X-Request-Deadline-Ms": {
        "name": "X-Request-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds from its arrival after which the client does not wait any more: the request is "
        "then answered with 504 and not computed. The service's own limit counts where it is earlier.",
        "schema": {"type": "string", "pattern": f"^{DEADLINE_PATTERN}$"},
        "example": "1500",
    },
}
HEADERS: Json = {
    "X-Request-ID": {
        "description": "The request's id: the client's own, or one made here.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._~:+=/-]{1,128}$"},
        "example": REQUEST_ID,
    },
    "X-Fleet-Host": {
        "description": "The host that answered; from nginx.",
        "schema": {"type": "string"},
        "example": "gpu-host-1",
    },
    "X-Fleet-Edge": {
        "description": "The edge that the answer came through, where there is one.",
        "schema": {"type": "string"},
        "example": "edge-1",
    },
    "Retry-After": {
        "description": "Seconds after which a retry makes sense.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
        "example": 4,
    },
    "Allow": {
        "description": "The methods that this path takes.",
        "required": True,
        "schema": {"type": "string"},
        "example": "OPTIONS, POST",
    },
}


def _headers(*more: str) -> Json:
    names = ("X-Request-ID", "X-Fleet-Host", "X-Fleet-Edge", *more)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _name(status: int) -> str:
    return f"Problem{status}"


def _text(config: Config, model: Model[Any, Any], said: Description) -> str:
    parts = [
        said.text,
        f"Model {model.name}, service {config.service}.",
        "Every error is `application/problem+json` (RFC 9457), from the service and from nginx alike; programs may "
        "switch on its `type`. Every answer has `X-Request-ID`.",
        f"A body has at most {config.max_body_bytes} bytes. A request that has waited {config.timeout_seconds:g} s "
        "is not computed any more.",
    ]
    return "\n\n".join(part for part in parts if part)


# ---- schemas -------------------------------------------------------------------------------------------------------


def _schemas(model: Model[Any, Any], said: Description) -> tuple[dict[str, Json], dict[str, Json]]:
    """Make the schemas by name, and the components that they refer to."""
    given = [body.schema for body in said.bodies]
    wanted = {"Answer": Answer, "Alive": Alive, "Ready": Ready, "Version": Version, "ProblemDetails": ProblemDetails}
    # The model's own by another name each: its classes may be called as ours are.
    types: dict[str, Any] = {f"body {number}": found for number, found in enumerate(given) if isinstance(found, type)}
    if isinstance(said.answer, type):
        types["members"] = said.answer
    try:
        made, components = msgspec.json.schema_components(
            [*wanted.values(), *types.values()], ref_template="#/components/schemas/{name}"
        )
    except TypeError as error:
        raise ConfigError(f"model {model.name!r} describes itself by a type without a JSON Schema: {error}") from error
    schemas = dict(zip([*wanted, *types], made, strict=True))
    schemas |= {f"body {number}": dict(found) for number, found in enumerate(given) if isinstance(found, Mapping)}
    _add_members(model, said, schemas.pop("members", None), components, _resolve(schemas["Answer"], components))
    return schemas, components


def _resolve(schema: Json, components: Mapping[str, Json]) -> Json:
    """Give the component that a schema refers to, or the schema itself."""
    return components[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def _add_members(
    model: Model[Any, Any], said: Description, members: Json | None, components: dict[str, Json], answer: Json
) -> None:
    """Put the model's members into the answer, where the service puts them."""
    if said.answer is None:
        answer["additionalProperties"] = True
        answer["description"] = "What every answer has. The model adds members, which it does not describe."
        return
    theirs: Json = dict(said.answer) if isinstance(said.answer, Mapping) else _resolve(members or {}, components)
    if not isinstance(theirs.get("properties"), Mapping):
        raise ConfigError(f"model {model.name!r} describes its answer by something else than an object with properties")
    timing = answer["properties"].pop("timing_ms")
    answer["properties"] |= {**theirs["properties"], "timing_ms": timing}
    needed = {*answer["required"], *theirs.get("required", [])}
    answer["required"] = [name for name in answer["properties"] if name in needed]
    answer["description"] = theirs.get("description", answer["description"])
    if members and "$ref" in members and f'"{members["$ref"]}"' not in json.dumps(components):
        del components[members["$ref"].rsplit("/", 1)[1]]


# ---- errors --------------------------------------------------------------------------------------------------------


def _kinds(said: Description) -> dict[int, dict[str, str]]:
    """Give the kinds of problems of each status: the last part of the type, and the title."""
    found: dict[int, dict[str, str]] = {}
    for status, slug, title in [
        *((one.status, one.slug, one.title) for one in (*OF_THE_SERVICE, *said.problems)),
        *FROM_NGINX,
    ]:
        found.setdefault(status, {}).setdefault(slug, title)
    return found


def _problem(status: int, kinds: Mapping[str, str]) -> Json:
    more = {405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}.get(status, ())
    examples = {
        slug: {
            "value": {
                "type": TYPE_PREFIX + slug,
                "title": title,
                "status": status,
                "detail": DETAILS.get(slug, title),
                "request_id": REQUEST_ID,
            }
        }
        for slug, title in kinds.items()
    }
    schema = {
        "allOf": [{"$ref": "#/components/schemas/ProblemDetails"}],
        "properties": {"type": {"enum": [TYPE_PREFIX + slug for slug in kinds]}, "status": {"const": status}},
    }
    return {
        "description": ", or ".join(kinds.values()),
        "headers": _headers(*more),
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    }


# ---- paths ---------------------------------------------------------------------------------------------------------


def _paths(config: Config, model: Model[Any, Any], said: Description, schemas: Mapping[str, Json]) -> Json:
    place = {"service": config.service, "device": DEVICE, "release": config.release}
    ready = {"last_success": "2026-01-01T12:00:00.000Z", "age_seconds": 3.205}
    version = {"version": metadata.version("inference")}
    runtime = {"model": model.name, "mode": config.mode, "torch_device": "cuda:0", "python": "3.11.2"}
    described = {"type": "object", "required": ["openapi", "info", "paths", "components"]}
    pages = {
        "/healthz": ("alive", "Ask whether the process lives", schemas["Alive"], {"status": "alive", **place}),
        "/readyz": (
            "ready",
            "Ask whether a request with a known answer succeeds on this device",
            schemas["Ready"],
            {"status": "ready", **place, **ready},
        ),
        "/version": ("version", "Ask what runs here", schemas["Version"], {**version, **place, **runtime}),
        "/openapi.json": ("describe", "Get this document", described, None),
    }
    paths = {config.route: {"post": _post(config, model, said, schemas), "options": _options("infer", "OPTIONS, POST")}}
    for path, (name, summary, schema, example) in pages.items():
        success = _success(schema, example)
        responses = {"200": success, **_problems(ANYWHERE)}
        bodiless = {key: value for key, value in success.items() if key != "content"}
        paths[path] = {
            "get": {"operationId": name, "tags": ["operators"], "summary": summary, "responses": responses},
            "head": {
                "operationId": f"{name}_head",
                "tags": ["operators"],
                "summary": f"{summary}: the headers alone",
                "responses": {status: bodiless if status == "200" else one for status, one in responses.items()},
            },
            "options": _options(name, "GET, HEAD, OPTIONS"),
        }
    return {
        path: {"parameters": [{"$ref": "#/components/parameters/X-Request-ID"}], **item} for path, item in paths.items()
    }


def _post(config: Config, model: Model[Any, Any], said: Description, schemas: Mapping[str, Json]) -> Json:
    own = {one.status for one in (*OF_THE_SERVICE, *said.problems)}
    return {
        "operationId": "infer",
        "tags": ["service"],
        "summary": said.summary,
        "description": said.text
        + f"\n\nThe input is the body itself, or the field `{model.field}` of `multipart/form-data`.",
        "parameters": [{"$ref": "#/components/parameters/X-Request-Deadline-Ms"}],
        "requestBody": {"required": True, "content": _bodies(model, said, schemas)},
        "responses": {
            "200": _success(schemas["Answer"], _answer_example(config, model, said)),
            **_problems(own | set(ANYWHERE)),
        },
    }


def _bodies(model: Model[Any, Any], said: Description, schemas: Mapping[str, Json]) -> Json:
    found = {body.media_type: _body(body, schemas.get(f"body {n}")) for n, body in enumerate(said.bodies)}
    # A part of a form is bytes, unless the model reads nothing but JSON or text.
    kinds = [body for body in said.bodies if body.schema is None] or list(said.bodies)
    part = BYTES if kinds[0].schema is None else schemas["body 0"]
    found["multipart/form-data"] = {
        "schema": {"type": "object", "properties": {model.field: part}, "required": [model.field]},
        "encoding": {model.field: {"contentType": ", ".join(body.media_type for body in kinds)}},
    }
    return found


def _body(body: Body, schema: Json | None) -> Json:
    found: Json = {"schema": BYTES if schema is None else schema}
    return found if body.example is None else {**found, "example": body.example}


def _answer_example(config: Config, model: Model[Any, Any], said: Description) -> Json:
    members = model.sample().expected if said.example is None else said.example
    timing = {"queue": 0.4, "decode": 1.8, "compute": 38.2, "total": 40.9}
    return {
        "request_id": REQUEST_ID,
        "model": {"name": model.name, "release": config.release},
        "device": DEVICE,
        **members,
        "timing_ms": {**timing, **({"batch": 4} if config.mode == "batch" else {})},
    }


def _success(schema: Json, example: Any) -> Json:
    content: Json = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"description": "The answer.", "headers": _headers(), "content": {"application/json": content}}


def _problems(statuses: Any) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in sorted(statuses)}


def _options(name: str, allowed: str) -> Json:
    return {
        "operationId": f"{name}_options",
        "tags": ["operators"],
        "summary": f"Ask for the methods: {allowed}",
        "responses": {
            "200": {"description": "The methods.", "headers": _headers("Allow")},
            # From nginx, with the headers of CORS; only where site_cors_origins is set.
            "204": {"description": "What a page of another origin may do.", "headers": _headers()},
            **_problems(ANYWHERE),
        },
    }
