"""BentoML: `echo` by a service with two workers; the MLP by a service of one worker that batches.

A mounted ASGI app answers `echo`, since its own methods take plain bytes only by way of a temporary file. The MLP's
method is one that batches, and such a method takes no plain bytes at all: it gets the numbers as JSON. (The service in
front that its documentation puts there, with plain bytes, answered half of the requests with 500: its client for the
service behind writes to connections that are closed already.) Metrics and the access log are off.
"""

from typing import Any

import bentoml
import models
import numpy as np
from settings import WORK
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

QUIET: dict[str, Any] = {
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "traffic": {"timeout": 60, "max_concurrency": 1024},
}


class Mlp:
    """Computes batches."""

    def __init__(self) -> None:
        self.model = models.Mlp()

    @bentoml.api(batchable=True, max_batch_size=models.BATCH, max_latency_ms=60_000, route="/predict")  # type: ignore[untyped-decorator]
    def predict(self, inputs: np.ndarray) -> list[list[float]]:
        return [models.rounded(row) for row in self.model.predict([row.astype(np.float32).tobytes() for row in inputs])]


async def answer(request: Request) -> Response:
    return Response(models.dumps(models.echo(await request.body())), media_type="application/json")


@bentoml.asgi_app(Starlette(routes=[Route("/predict", answer, methods=["POST"])]), path="/")
class Echo:
    """One request at a time."""


if WORK == "echo":
    service = bentoml.service(name="echo", workers=2, **QUIET)(Echo)
else:
    service = bentoml.service(name="mlp", workers=1, **QUIET)(Mlp)
