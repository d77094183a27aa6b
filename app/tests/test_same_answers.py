"""Mode batch gives the answers of mode process: exactly for the echo model, within 1e-3 for tensors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from inference.compare import difference
from servers import ECHO, MODEL_PROCESS, Server, batching, uwsgi

BATCH = {"threads": "16", "attach-daemon2": MODEL_PROCESS}
JSON = {"Content-Type": "application/json"}


def answers(server: Server, bodies: list[bytes], together: int) -> tuple[list[Any], int]:
    """Give the answers without what differs from request to request, and the size of the largest batch."""
    with ThreadPoolExecutor(together) as pool:
        replies = list(pool.map(lambda body: server.ask("POST", "/v1/parse", body, JSON), bodies))
    found = [reply.json() for reply in replies]
    largest = max(answer["timing_ms"].get("batch", 1) if "timing_ms" in answer else 1 for answer in found)
    for answer in found:
        del answer["request_id"]
        answer.pop("timing_ms", None)
    return found, largest


def compare(folder: Path, variables: dict[str, str], bodies: list[bytes], tolerance: float) -> None:
    (folder / "process").mkdir()
    with uwsgi(folder / "process", 1, {**ECHO, **variables}) as server:
        expected, _ = answers(server, bodies, 1)
    (folder / "batch").mkdir()
    with uwsgi(folder / "batch", 2, {**batching(folder / "batch"), **variables}, **BATCH) as server:
        found, largest = answers(server, bodies, 12)
    assert largest > 1
    assert difference(expected, found, tolerance) is None


def test_echo_gives_the_same(tmp_path: Path) -> None:
    bodies = [json.dumps({"n": number, "text": "é" * number, "list": [[1.5], None]}).encode() for number in range(40)]
    # Each kind of error is the same too.
    compare(tmp_path, {"INFERENCE_OPTIONS": '{"delay_ms": 20}'}, [*bodies, b"{", b"", b"[1e999]"], 0.0)


class Net(torch.nn.Module):
    """16 numbers become 7 probabilities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.Tanh(), torch.nn.Linear(256, 7))

    def forward(self, x: Any) -> Any:
        return torch.softmax(self.layers(x), dim=-1)


@pytest.mark.parametrize("batched", [True, False])
def test_program_gives_the_same_within_a_thousandth(tmp_path: Path, batched: bool) -> None:
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=8)}} if batched else None
    example = torch.zeros(2, 16) if batched else torch.zeros(16)
    torch.export.save(torch.export.export(Net().eval(), (example,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    rows = torch.randn(60, 16, generator=torch.Generator().manual_seed(2))
    expected = Net().eval()(rows[0]).tolist()
    options = {
        "program": "net.pt2",
        "batched": batched,
        "sample": {"inputs": [rows[0].tolist()], "outputs": [expected]},
    }
    variables = {
        "INFERENCE_MODEL": "inference.models.program:ProgramModel",
        "INFERENCE_ARTIFACTS": str(tmp_path),
        "INFERENCE_OPTIONS": json.dumps(options),
    }
    bodies = [json.dumps({"inputs": [row.tolist()]}).encode() for row in rows]
    # Of another size than the program takes.
    bodies.insert(7, b'{"inputs": [[1, 2]]}')
    compare(tmp_path, variables, bodies, 1e-3)
