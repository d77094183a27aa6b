"""BentoML: `echo` by a service with two workers; the MLP by a service of one worker that batches, behind another.

That split is the one of its documentation for models behind a service. The route is a mounted ASGI app, since its own
methods take plain bytes only by way of a temporary file. Metrics, traces and the access log are off.
"""

from typing import Any

import bentoml
import models
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


@bentoml.service(name="mlp", workers=1, **QUIET)
class Mlp:
    """Computes batches."""

    def __init__(self) -> None:
        self.model = models.Mlp()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True, max_batch_size=models.BATCH, max_latency_ms=60_000
    )
    def compute(self, bodies: list[bytes]) -> list[list[float]]:
        return self.model.predict(bodies)


async def answer_echo(request: Request) -> Response:
    return Response(models.dumps(models.echo(await request.body())), media_type="application/json")


async def answer_mlp(request: Request) -> Response:
    front = bentoml.get_current_service()
    (row,) = await front.mlp.to_async.compute([await request.body()])
    return Response(models.dumps({"output": models.rounded(row)}), media_type="application/json")


app = Starlette(routes=[Route("/predict", answer_echo if WORK == "echo" else answer_mlp, methods=["POST"])])


@bentoml.asgi_app(app, path="/")
class Front:
    """Takes the requests."""

    if WORK == "mlp":
        mlp = bentoml.depends(Mlp)


service = bentoml.service(name="front", workers=2 if WORK == "echo" else 1, **QUIET)(Front)
