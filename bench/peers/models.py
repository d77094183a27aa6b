"""What every server of the benchmark serves: the same code and the same weights, imported by all of them.

Imports torch only for the MLP, so that servers of `echo` are as light as they can be.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Layers of the MLP: 63 MB of float32 weights, and 21 million multiplications for an input of 4,096 bytes.
SIZES = (1024, 4096, 4096, 10)
SEED = 20260707
BATCH = 32
#: Decimals in the answer: fewer than where a batch of one and a batch of 32 round differently.
DECIMALS = 3


def echo(body: bytes) -> dict[str, Any]:
    """Answer text with itself."""
    return {"echo": body.decode()}


class Mlp:
    """A perceptron of three layers on the CPU, on one torch thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        layers: list[torch.nn.Module] = []
        for one, other in itertools.pairwise(SIZES):
            layers += [torch.nn.Linear(one, other), torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1]).eval()

    def predict(self, bodies: Sequence[bytes]) -> list[list[float]]:
        """Compute one row of ten numbers for each body of 1,024 float32 values."""
        import torch

        with torch.inference_mode():
            batch = torch.frombuffer(bytearray(b"".join(bodies)), dtype=torch.float32).view(len(bodies), SIZES[0])
            found: list[list[float]] = self.network(batch).tolist()
        return found


def body_of_mlp(number: int = 0) -> bytes:
    """The body of a request: 1,024 float32 values between -1 and 1, 4,096 bytes."""
    import torch

    generator = torch.Generator().manual_seed(SEED + number)
    return bytes(torch.empty(SIZES[0]).uniform_(-1, 1, generator=generator).numpy().tobytes())


def rounded(row: list[float]) -> list[float]:
    """A row as it stands in an answer."""
    return [round(value, DECIMALS) for value in row]


def dumps(answer: dict[str, Any]) -> bytes:
    """An answer as JSON."""
    return json.dumps(answer, separators=(",", ":")).encode()
