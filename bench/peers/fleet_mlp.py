"""The MLP as a model of the fleet's own app."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import models
from inference.errors import UnreadableInput
from inference.model import Model, ModelContext, Sample


class MlpModel(Model[bytes, list[float]]):
    """1,024 float32 values in, ten numbers out."""

    name: ClassVar[str] = "mlp"

    def setup(self, context: ModelContext) -> None:
        self._model = models.Mlp()

    def decode(self, body: bytes, content_type: str) -> bytes:
        if len(body) != 4 * models.SIZES[0]:
            raise UnreadableInput(f"The body has {len(body)} bytes; it must have {4 * models.SIZES[0]}.")
        return body

    def predict(self, inputs: Sequence[bytes]) -> list[list[float]]:
        return self._model.predict(inputs)

    def encode(self, output: list[float]) -> dict[str, Any]:
        return {"output": models.rounded(output)}

    def sample(self) -> Sample:
        return _sample()


@functools.cache
def _sample() -> Sample:
    body = models.body_of_mlp()
    (row,) = models.Mlp().predict([body])
    return Sample(body, "application/octet-stream", {"output": models.rounded(row)}, 0.002)
