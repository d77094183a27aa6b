"""What the service says, as types: its own answers are made of them, and the API's description is made from them.

The answer of the service's route is written by hand in :mod:`inference.blueprints.service`, because it comes with each
request; the tests hold every answer against the description.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from inference.config import MODES

Milliseconds = Annotated[float, Meta(ge=0)]
ServiceName = Annotated[str, Meta(description="Name of the service.")]
DeviceName = Annotated[str, Meta(description="The device, such as gpu0.")]
ReleaseId = Annotated[str, Meta(description="Id of the release: code and model files.")]
RequestId = Annotated[str, Meta(pattern="^[A-Za-z0-9._~:+=/-]{1,128}$", description="As in the header X-Request-ID.")]


class ModelAndRelease(Struct, frozen=True):
    """What computed an answer."""

    name: Annotated[str, Meta(description="Name of the model.")]
    release: ReleaseId


class Timing(Struct, frozen=True):
    """Where the time of a request went, in milliseconds."""

    queue: Annotated[Milliseconds, Meta(description="Waiting: since nginx handed it over, and for the device.")]
    decode: Annotated[Milliseconds, Meta(description="Reading the body and making an input of it.")]
    compute: Annotated[Milliseconds, Meta(description="On the device.")]
    total: Annotated[Milliseconds, Meta(description="All of it, since nginx handed the request over.")]
    batch: Annotated[int, Meta(ge=1, description="Mode batch: requests computed together.")] | UnsetType = UNSET


class Answer(Struct, frozen=True):
    """What every answer of the service's route has; the model adds its own members."""

    request_id: RequestId
    model: ModelAndRelease
    device: DeviceName
    timing_ms: Timing


class Alive(Struct, frozen=True, kw_only=True):
    """The process lives."""

    status: Literal["alive"]
    service: ServiceName
    device: DeviceName
    release: ReleaseId


class Ready(Struct, frozen=True, kw_only=True):
    """The sample has given its known answer on this device, not long ago."""

    status: Literal["ready"]
    service: ServiceName
    device: DeviceName
    release: ReleaseId
    last_success: Annotated[str, Meta(description="When that was.", extra_json_schema={"format": "date-time"})]
    age_seconds: Annotated[float, Meta(ge=0, description="How long ago that was.")]


class Version(Struct, frozen=True, kw_only=True):
    """What runs here."""

    version: Annotated[str, Meta(description="Version of the service's code.")]
    service: ServiceName
    device: DeviceName
    release: ReleaseId
    model: Annotated[str, Meta(description="Name of the model.")]
    mode: Annotated[
        str,
        Meta(
            description="Whether each worker computes, or one process computes batches.",
            extra_json_schema={"enum": list(MODES)},
        ),
    ]
    torch_device: Annotated[str, Meta(description="The device as torch calls it.")]
    python: Annotated[str, Meta(description="Version of Python.")]
    torch: Annotated[str, Meta(description="Version of torch, where the process has loaded it.")] | UnsetType = UNSET
    revision: (
        Annotated[dict[str, Any], Meta(description="Facts of the release: its REVISION.json without the wheels.")]
        | UnsetType
    ) = UNSET


class ProblemDetails(Struct, frozen=True):
    """An error, RFC 9457."""

    type: Annotated[str, Meta(description="A URN that names the kind of error; it does not change.")]
    title: Annotated[str, Meta(description="The kind of error in words.")]
    status: Annotated[int, Meta(ge=400, le=599, description="The HTTP status.")]
    detail: Annotated[str, Meta(min_length=1, description="One sentence: what is wrong, and the value seen.")]
    request_id: RequestId
