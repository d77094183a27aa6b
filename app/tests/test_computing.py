"""What becomes of a batch that fails: nobody suffers for another's input, nor for too little memory."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from batch_doubles import FakeClock, ScriptedModel, loaded, work
from doubles import LogLines
from inference.computing import Computer, is_context_lost, is_out_of_memory
from inference.errors import ModelFailed, NotReady, UnreadableInput


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
def computer(model: ScriptedModel) -> Computer:
    return loaded(model, FakeClock())


def outcomes(computer: Computer, *kinds: str, cost: int = 1) -> list[object]:
    return computer.compute([work(number, kind, cost) for number, kind in enumerate(kinds)])


def test_each_gets_its_own_output_in_order(computer: Computer, model: ScriptedModel) -> None:
    assert outcomes(computer, "ok", "ok", "ok") == ["answer 0", "answer 1", "answer 2"]
    assert model.calls == [[0, 1, 2]]


@pytest.mark.parametrize("place", range(5))
def test_a_poisoned_input_does_not_fail_its_neighbours(computer: Computer, place: int) -> None:
    kinds = ["ok"] * 5
    kinds[place] = "poison"
    found = outcomes(computer, *kinds)
    assert isinstance(found[place], ModelFailed)
    assert str(found[place]) == "ValueError: poisoned"
    assert [one for number, one in enumerate(found) if number != place] == [
        f"answer {number}" for number in range(5) if number != place
    ]
    assert computer.sound is False
    assert computer.broken is False


def test_an_input_that_blames_its_client_fails_alone_and_the_model_stays_sound(computer: Computer) -> None:
    found = outcomes(computer, "ok", "blame", "ok")
    assert (found[0], found[2]) == ("answer 0", "answer 2")
    assert isinstance(found[1], UnreadableInput)
    assert computer.sound is True


def test_failures_in_the_place_of_outputs(computer: Computer, model: ScriptedModel) -> None:
    found = outcomes(computer, "placed-blame", "ok")
    assert isinstance(found[0], UnreadableInput)
    assert found[1] == "answer 1"
    assert computer.sound is True
    found = outcomes(computer, "ok", "placed")
    assert isinstance(found[1], ModelFailed)
    assert found[0] == "answer 0"
    assert computer.sound is False
    assert len(model.calls) == 2


@pytest.mark.parametrize("error", [MemoryError, lambda: torch.cuda.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_halves_the_batch_until_it_fits(
    computer: Computer, model: ScriptedModel, error: type[Exception]
) -> None:
    model.out_of_memory = error
    model.capacity = 9
    costs: list[int] = []
    computer.on_out_of_memory = costs.append
    assert outcomes(computer, *["ok"] * 8, cost=4) == [f"answer {number}" for number in range(8)]
    assert model.calls == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [0, 1],
        [2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [6, 7],
    ]
    assert costs == [32, 16, 16]
    assert computer.sound is True


def test_an_input_that_is_too_large_alone_is_tried_twice(computer: Computer, model: ScriptedModel) -> None:
    model.capacity = 3
    (found,) = outcomes(computer, "ok", cost=4)
    assert isinstance(found, ModelFailed)
    assert model.calls == [[0], [0]]
    assert computer.broken is False


def test_a_lost_context_breaks_the_device_and_blames_nobody(computer: Computer, model: ScriptedModel) -> None:
    found = outcomes(computer, "ok", "lost", "ok")
    assert all(isinstance(one, NotReady) for one in found)
    assert computer.broken is True
    assert model.calls == [[0, 1, 2]]


def test_when_the_sample_fails_too_the_model_is_at_fault_and_no_input(
    computer: Computer, model: ScriptedModel, log_lines: LogLines
) -> None:
    model.sample_failure = RuntimeError("nothing works")
    found = outcomes(computer, "ok", "poison", "ok")
    assert all(isinstance(one, NotReady) for one in found)
    assert model.calls == [[0, 1, 2]]
    assert (computer.sound, computer.broken) == (False, False)
    assert computer.check() is False
    assert computer.broken is True
    (failed,) = log_lines.facts("batch_failed")
    assert failed["request_ids"] == ["request-0", "request-1", "request-2"]
    assert [facts["failures"] for facts in log_lines.facts("sample_failed")] == [1, 2]


def test_a_batch_is_told_with_the_ids_of_its_requests_when_that_is_asked_for(
    computer: Computer, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "inference"):
        outcomes(computer, "ok")
    assert log_lines.facts("batch_computed") == []
    with caplog.at_level(logging.DEBUG, "inference"):
        outcomes(computer, "ok", "ok")
    (told,) = log_lines.facts("batch_computed")
    assert told["request_ids"] == ["request-0", "request-1"]
    assert told["cost"] == 2


def test_a_wrong_number_of_outputs_is_a_failure(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedModel, "predict", lambda self, inputs: ["answer -1"])
    found = outcomes(computer, "ok", "ok")
    # Of two inputs one output cannot be told whose it is; alone each has its own.
    assert found == ["answer -1", "answer -1"]


def test_memory_of_a_failed_call_is_free_when_it_is_tried_again(
    computer: Computer, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback keeps the locals of the calls that failed, and so what they have put on the device."""
    # pytest's own handler keeps the records, and with them the tracebacks.
    monkeypatch.setattr(logging.getLogger("inference.computing"), "disabled", True)
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def during(items: list[object]) -> None:
        gc.collect()
        alive.append(sum(reference() is not None for reference in held))
        on_device = torch.zeros(8)
        held.append(weakref.ref(on_device))
        if len(items) > 1:
            raise MemoryError("with a tensor in the frame")

    model.during = during  # type: ignore[assignment]
    outcomes(computer, "ok", "ok", "ok", "ok")
    assert len(alive) == 7
    assert alive == [0] * 7


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (MemoryError(), True, False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True, False),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), False, True),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: invalid argument"), False, False),
        (ValueError("CUDA error: unspecified launch failure, says a client"), False, False),
    ],
)
def test_errors_are_told_apart_by_type_and_text(error: Exception, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_context_lost(error)) == (memory, lost)
