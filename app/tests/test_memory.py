"""How large a batch may be, by the memory that the sample was measured to take; pools that threads share."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from batch_doubles import WATCHDOG, FakeClock, ScriptedModel, work
from inference import memory
from inference.batching import Limits
from inference.computing import Computer
from inference.config import Config
from inference.engine import Engine

GIB = 2**30


@pytest.mark.parametrize(
    ("taken", "cost", "free", "expected"),
    [
        (1 * GIB, 100, 10 * GIB, 800),
        (1 * GIB, 1, 80 * GIB, 64),
        # The sample fitted, so an input of its cost does.
        (2 * GIB, 100, 1 * GIB, 100),
        (0, 100, 10 * GIB, None),
        (1 * GIB, 0, 10 * GIB, None),
    ],
)
def test_a_batch_may_take_most_of_what_is_free(taken: int, cost: int, free: int, expected: int | None) -> None:
    assert memory.cost_that_fits(taken, cost, free) == expected


class FakeCuda:
    """Memory of a device on which the weights take 1 GiB and the sample 2 GiB more, of 10 GiB; torch has reserved 4."""

    def __init__(self) -> None:
        self.peak = 7 * GIB

    def reset_peak_memory_stats(self) -> None:
        self.peak = GIB

    def memory_allocated(self) -> int:
        return GIB

    def max_memory_allocated(self) -> int:
        return self.peak

    def memory_reserved(self) -> int:
        return 4 * GIB

    def max_memory_reserved(self) -> int:
        return 4 * GIB

    def mem_get_info(self) -> tuple[int, int]:
        return 6 * GIB, 10 * GIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake, __version__="0"))
    return fake


def test_the_meter_tells_the_sample_from_the_weights(cuda: FakeCuda) -> None:
    meter = memory.DeviceMeter("cuda:0")
    cuda.peak = 3 * GIB
    assert meter.taken_bytes() == 2 * GIB
    assert meter.free_bytes() == 9 * GIB, "6 GiB on the device, and 3 GiB that torch has reserved and does not use"


def test_on_a_cpu_nothing_is_measured() -> None:
    meter = memory.DeviceMeter("cpu")
    assert (meter.taken_bytes(), meter.free_bytes()) == (0, 0)


class TwoGib(memory.DeviceMeter):
    """A device on which the sample took 2 GiB, and 10 GiB are free."""

    def taken_bytes(self) -> int:
        return 2 * GIB

    def free_bytes(self) -> int:
        return 10 * GIB


def test_batches_are_bounded_by_what_was_measured_at_the_first_load() -> None:
    model = ScriptedModel()
    clock = FakeClock()
    computer = Computer(Config(accelerator="cpu"), model, WATCHDOG, clock, TwoGib)
    computer.load()
    # The sample of the model has cost 1.
    assert computer.facts["cost_bound"] == 4
    one = Engine(computer, Limits(max_items=8), 30.0, clock=clock)
    for number in range(10):
        assert one.offer(work(number)) is None
    one.stop()
    thread = threading.Thread(target=one.run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert model.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("start", "few"), [("memory.share_pools()", True), ("", False)])
def test_threads_share_pools_of_memory(start: str, few: bool) -> None:
    program = f"""
import ctypes, threading
from inference import memory
{start}
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(12)
def take():
    together.wait()
    library.malloc(100)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
output = ctypes.c_void_p(library.fdopen(1, b"w"))
library.malloc_info(0, output)
library.fflush(output)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (1 <= done.stdout.count("<heap nr=") <= 2) is few
