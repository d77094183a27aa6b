from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from doubles import Clock, LogLines, PuppetModel
from inference.compare import difference
from inference.config import Config
from inference.errors import ConfigError, NotReady, OverTime, SampleError
from inference.runner import Runner
from inference.watchdog import Watchdog

Start = Callable[..., Runner]


@pytest.fixture
def retired() -> list[str]:
    return []


@pytest.fixture
def start(config: Config, puppet: PuppetModel, retired: list[str]) -> Start:
    """Start a runner around the puppet."""

    def make(timeout_seconds: float = 60.0, watchdog: Watchdog | None = None) -> Runner:
        runner = Runner(
            replace(config, timeout_seconds=timeout_seconds),
            puppet,
            retire=lambda: retired.append("now"),
            watchdog=watchdog,
        )
        runner.start()
        return runner

    return make


def test_model_gets_its_context(start: Start, puppet: PuppetModel, config: Config) -> None:
    start()
    assert puppet.context is not None
    assert (puppet.context.device, puppet.context.artifacts) == ("cpu", config.artifacts)
    assert (puppet.context.threads, puppet.context.max_pixels) == (1, 50_000_000)


def test_start_fails_when_the_sample_has_another_answer(
    start: Start, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puppet, "encode", lambda _: {"length": 5})
    with pytest.raises(SampleError, match=r"model 'puppet' on cpu: answer\.length: expected 6, got 5"):
        start()


def test_start_fails_as_the_model_fails(start: Start, puppet: PuppetModel) -> None:
    puppet.failure = RuntimeError("no kernel image")
    with pytest.raises(RuntimeError, match="no kernel image"):
        start()


def test_start_fails_when_the_model_takes_members_of_the_service(
    start: Start, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puppet, "encode", lambda _: {"length": 6, "device": "mine"})
    with pytest.raises(ConfigError, match="reserved members: device"):
        start()


def test_wrong_number_of_outputs_is_the_models_fault(
    start: Start, puppet: PuppetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = start()
    monkeypatch.setattr(puppet, "predict", lambda _: [])
    with pytest.raises(RuntimeError, match="gave 0 outputs for 1 input"):
        runner.answer(b"x", "", time.monotonic() + 1)
    with pytest.raises(NotReady):
        runner.health()


def test_one_request_computes_at_a_time_and_the_other_waits(start: Start, puppet: PuppetModel) -> None:
    runner = start()
    puppet.delay_seconds = 0.2
    answers = []

    def ask() -> None:
        answers.append(runner.answer(b"x", "", time.monotonic() + 10))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waited = sorted(answer.waited for answer in answers)
    assert waited[0] < 0.1
    assert waited[1] >= 0.1
    assert all(0.2 <= answer.compute < 0.35 for answer in answers)


def test_waiting_for_the_device_ends_at_the_deadline(start: Start, puppet: PuppetModel) -> None:
    runner = start()
    puppet.delay_seconds = 1.0
    busy = threading.Thread(target=runner.answer, args=(b"first", "", time.monotonic() + 10))
    busy.start()
    while not runner._turn.locked():
        time.sleep(0.01)
    began = time.monotonic()
    with pytest.raises(OverTime, match="not computed"):
        runner.answer(b"second", "", began + 0.2)
    assert 0.2 <= time.monotonic() - began < 0.8
    busy.join()
    assert puppet.predicted == [b"sample", b"first"]


def test_device_busy_with_work_stays_ready(start: Start, puppet: PuppetModel, clock: Clock) -> None:
    runner = start()
    puppet.delay_seconds = 2.0
    busy = threading.Thread(target=runner.answer, args=(b"first", "", time.monotonic() + 100))
    busy.start()
    while not runner._turn.locked():
        time.sleep(0.01)
    clock.ahead = 31
    assert runner.health().age > 30
    busy.join()


def test_worker_asks_to_be_replaced_after_two_failed_samples(
    start: Start, puppet: PuppetModel, retired: list[str], clock: Clock
) -> None:
    runner = start()
    puppet.failure = RuntimeError("sticky")
    with pytest.raises(RuntimeError, match="sticky"):
        runner.answer(b"x", "", time.monotonic() + 1)
    with pytest.raises(NotReady):
        runner.health()
    assert retired == []
    clock.ahead += 2
    with pytest.raises(NotReady):
        runner.answer(b"x", "", time.monotonic() + 1)
    assert retired == ["now"]
    clock.ahead += 2
    with pytest.raises(NotReady):
        runner.health()
    assert retired == ["now"]


def test_watchdog_ends_a_process_whose_model_hangs(start: Start, puppet: PuppetModel, log_lines: LogLines) -> None:
    ended: list[str] = []
    runner = start(watchdog=Watchdog(0.2, lambda: ended.append("process")))
    puppet.delay_seconds = 0.6
    runner.answer(b"x", "", time.monotonic() + 1)
    assert ended == ["process"]
    (facts,) = log_lines.facts("model_stuck")
    assert (facts["exit_status"], facts["limit_seconds"]) == (86, 0.2)
    assert 0.2 < facts["seconds"] < 0.6
    assert "in predict" in facts["stack"]


def test_watchdog_lets_many_short_calls_pass() -> None:
    ended: list[str] = []
    watchdog = Watchdog(0.2, lambda: ended.append("process"))
    for _ in range(8):
        with watchdog.watching():
            time.sleep(0.05)
    time.sleep(0.1)
    assert ended == []


def test_close_lets_go_of_the_model(start: Start) -> None:
    runner = start()
    runner.close()
    with pytest.raises(AttributeError):
        _ = runner.model_name


@pytest.mark.parametrize(
    ("expected", "found", "tolerance", "text"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, 0.0, None),
        ({"a": [1.0, [2.0]]}, {"a": (1.05, [1.95])}, 0.1, None),
        ({"a": [1.0]}, {"a": [1.2]}, 0.1, "answer.a[0]: expected 1.0, got 1.2"),
        ({"a": 1}, {}, 0.0, "answer.a: missing"),
        ({"a": [1, 2]}, {"a": [1]}, 0.0, "answer.a: expected 2 items, got [1]"),
        ({"a": {}}, {"a": 1}, 0.0, "answer.a: expected an object, got 1"),
        ({"a": "x"}, {"a": "y"}, 9.0, "answer.a: expected 'x', got 'y'"),
        ({"a": 1.0}, {"a": float("nan")}, 9.0, "answer.a: expected 1.0, got nan"),
        ({"a": 1}, {"a": True}, 9.0, "answer.a: expected 1, got True"),
        ({"a": None}, {"a": None}, 0.0, None),
    ],
)
def test_comparison(expected: object, found: object, tolerance: float, text: str | None) -> None:
    assert difference(expected, found, tolerance) == text
