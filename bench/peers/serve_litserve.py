"""LitServe: `echo` by two workers and two API servers; the MLP by one worker in batches, and one API server.

Its fast queue (ZeroMQ) is on, its access log is off. A body of plain bytes reaches decode_request by FastAPI's Body.
"""

from typing import Annotated, Any

import litserve
import models
from fastapi import Body, Response
from settings import PORT, WORK

Bytes = Annotated[bytes, Body(media_type="application/octet-stream")]


class Raw(litserve.LitAPI):
    """Bytes in, JSON out."""

    def decode_request(self, request: Bytes) -> bytes:
        return request

    def encode_response(self, output: dict[str, Any]) -> Response:
        return Response(models.dumps(output), media_type="application/json")


class Echo(Raw):
    """One request at a time."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def predict(self, x: bytes) -> dict[str, Any]:
        return models.echo(x)


class Mlp(Raw):
    """A batch at a time."""

    def setup(self, device: str) -> None:
        self.model = models.Mlp()

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[dict[str, Any]]:
        return [{"output": models.rounded(row)} for row in self.model.predict(x)]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


if __name__ == "__main__":
    api = Echo() if WORK == "echo" else Mlp(max_batch_size=models.BATCH, batch_timeout=0.01)
    workers = 2 if WORK == "echo" else 1
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=workers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
