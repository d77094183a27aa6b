"""mosec: `echo` unbatched by two workers, one for each core; the MLP by one worker in batches.

The HTTP front is Rust and takes no setting for its threads. max_wait_time is how long a batch waits to fill, in
ms: that of its documentation's example.
"""

from typing import Any

import models
from mosec import Server, Worker
from settings import PORT, WORK

ARGUMENTS = ["--address", "127.0.0.1", "--port", str(PORT), "--timeout", "60000", "--log-level", "warning"]


class Raw(Worker):
    """Bytes in, JSON out."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: dict[str, Any]) -> bytes:
        return models.dumps(data)


class Echo(Raw):
    """One request at a time."""

    def forward(self, data: bytes) -> dict[str, Any]:
        return models.echo(data)


class Mlp(Raw):
    """A batch at a time."""

    def __init__(self) -> None:
        self.model = models.Mlp()

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        return [{"output": models.rounded(row)} for row in self.model.predict(data)]


if __name__ == "__main__":
    import sys

    sys.argv[1:] = ARGUMENTS
    server = Server()
    if WORK == "echo":
        server.append_worker(Echo, num=2, route="/predict")
    else:
        server.append_worker(Mlp, num=1, max_batch_size=models.BATCH, max_wait_time=10, route="/predict")
    server.run()
