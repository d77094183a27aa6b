"""The interface between the service and a model.

A service hosts exactly one :class:`Model` on one device. The service owns HTTP, limits,
timing and logs; the model owns the meaning of the bytes. The split into ``decode``,
``predict`` and ``encode`` is what lets the same model run one request at a time or in
batches: only ``predict`` touches the device, and it always takes a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from inference.description import Description

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class ModelContext:
    """Everything a model may know of the place it runs in.

    Attributes:
        device: torch device string of the one device this process sees, ``"cpu"`` or ``"cuda:0"``.
        artifacts: folder with the files of the release (weights, dictionaries, programs).
        threads: CPU threads one worker may use for compute.
        max_pixels: an image with more pixels than this is refused before it is decoded.
        options: the ``options`` of the service definition, passed through as they are.
        computes: False in a web worker of mode batch, which only decodes and encodes; ``device`` is then
            ``"cpu"``, and :meth:`Model.setup` is not called.
    """

    device: str
    artifacts: Path
    threads: int = 1
    max_pixels: int = 50_000_000
    options: Mapping[str, Any] = field(default_factory=dict)
    computes: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """A request with a known answer, used for warm-up, ``/readyz`` and the validator.

    Attributes:
        body: the request body.
        content_type: its media type.
        expected: keys and values that the encoded answer must contain.
        tolerance: largest absolute difference allowed between two numbers. Devices round differently, so
            a model that answers raw floats needs more than the default 0.
    """

    body: bytes
    content_type: str
    expected: Mapping[str, Any]
    tolerance: float = 0.0


class Model(ABC, Generic[Input, Output]):
    """One model on one device: ``setup`` once per process that computes, ``predict`` without side effects.

    In mode batch ``decode`` and ``encode`` run in the web workers and ``predict`` in the model process. What
    ``decode`` and ``predict`` give is then pickled: arrays and CPU tensors are cheap.
    """

    #: Name in the answer's ``model.name``.
    name: ClassVar[str]
    #: Field of a ``multipart/form-data`` body that holds the input.
    field: ClassVar[str] = "image"
    #: False for a model that never computes with torch: it then starts without importing torch.
    uses_torch: ClassVar[bool] = True

    def prepare(self, context: ModelContext) -> None:
        """Get ready what ``decode`` and ``encode`` need. Called once in every process, before any other method.

        Raises:
            ConfigError: an option is unknown or has a bad value.
            ArtifactError: a file of the release is missing or damaged.
        """

    @abstractmethod
    def setup(self, context: ModelContext) -> None:
        """Load weights on ``context.device``. Called once, after ``prepare``, where ``predict`` will be.

        Raises:
            ArtifactError: a file of the release is missing or damaged.
        """

    @abstractmethod
    def decode(self, body: bytes, content_type: str) -> Input:
        """Turn a request body into an input on the CPU.

        Raises:
            Problem: the client's fault, with the HTTP status that says which.
        """

    def cost(self, item: Input) -> int:
        """Say what an input takes of the device's memory and time, in a unit of the model's own, at least 1.

        Batches are bounded by the sum; pixels are right for images of many sizes.
        """
        return 1

    @abstractmethod
    def predict(self, inputs: Sequence[Input]) -> Sequence[Output | Exception]:
        """Compute one output per input, in order, on the device; the outputs are on the CPU.

        In place of an output there may be an exception, which fails that request alone: a
        :class:`~inference.errors.Problem` blames the client, anything else is the model's fault.
        """

    @abstractmethod
    def encode(self, output: Output) -> dict[str, Any]:
        """Turn an output into the JSON members this model adds to the answer."""

    @abstractmethod
    def sample(self) -> Sample:
        """Give a small request with a known answer."""

    def describe(self) -> Description:
        """Say what the model reads and answers, for ``/openapi.json``. Called once, after ``prepare``.

        A model need not: its bodies and the members of its answers are then described as anything.
        """
        return Description()
