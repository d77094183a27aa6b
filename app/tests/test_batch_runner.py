"""Web worker and model process over their real socket, as two threads of one process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_doubles import Item, ScriptedModel
from inference import channel
from inference.app import create_app
from inference.batch_runner import BatchRunner
from inference.channel import READY, LinkClosed
from inference.config import Config
from inference.errors import Busy, ClientLeft, ModelFailed, ModelProcessError, NotReady, OverTime, UnreadableInput
from inference.model_process import EXIT_BROKEN, EXIT_NOT_STARTED, ModelProcess
from servers import wait_for


class KindModel(ScriptedModel):
    """Read the kind of the item from the body too: ``7 poison``."""

    def decode(self, body: bytes, content_type: str) -> Item:
        number, _, kind = body.decode().partition(" ")
        return Item(int(number), kind or "ok")

    def encode(self, output: Any) -> dict[str, Any]:
        return {"said": output}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        route="/v1/test",
        accelerator="cpu",
        mode="batch",
        channel=tmp_path / "model",
        timeout_seconds=20,
    )


class Running:
    """A model process on a thread."""

    def __init__(self, config: Config, model: ScriptedModel) -> None:
        self.model = model
        self.process = ModelProcess(config, model)
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.status = self.process.run()
        # What the end of a process does.
        for link in list(self.process._links.values()):
            link.close()
        self.process._listening.close()
        os.close(self.process._wake)

    def ended(self) -> int | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.status


@pytest.fixture
def start(config: Config) -> Iterator[Callable[..., Running]]:
    """Start a model process."""
    started: list[Running] = []

    def make(**settings: Any) -> Running:
        started.append(Running(replace(config, **settings), KindModel()))
        return started[-1]

    yield make
    for one in started:
        if one.thread.is_alive():
            one.process.stop()
        one.ended()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Hold the model until the test lets it go on."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def worker(config: Config, start: Callable[..., Running]) -> Iterator[tuple[BatchRunner, Running]]:
    """A web worker beside a model process."""
    running = start()
    runner = BatchRunner(config, KindModel(), client=lambda: None)
    runner.start()
    yield runner, running
    runner.close()


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def hold(running: Running, gate: threading.Event) -> threading.Event:
    """Make the model wait for the gate in each call; give what is set when it does."""
    entered = threading.Event()

    def during(items: list[Item]) -> None:
        entered.set()
        assert gate.wait(20)

    running.model.during = during
    return entered


def test_requests_of_many_threads_meet_in_a_batch(worker: tuple[BatchRunner, Running], gate: threading.Event) -> None:
    runner, running = worker
    entered = hold(running, gate)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(runner.answer, b"0", "", soon())
        assert entered.wait(10)
        others = [pool.submit(runner.answer, str(number).encode(), "", soon()) for number in range(1, 9)]
        wait_for(lambda: len(running.process._engine._queue) == 8, "eight requests in the queue")
        time.sleep(0.05)
        gate.set()
        answers = [future.result(20) for future in [first, *others]]
    assert [answer.members for answer in answers] == [{"said": f"answer {number}"} for number in range(9)]
    assert [answer.batch for answer in answers] == [1] + [8] * 8
    assert all(answer.waited >= 0.05 for answer in answers[1:])
    assert len(running.process._links) == 9


def test_each_kind_of_failure_arrives_as_what_it_is(worker: tuple[BatchRunner, Running]) -> None:
    runner, _ = worker
    with pytest.raises(ModelFailed, match="ValueError: poisoned"):
        runner.answer(b"1 poison", "", soon())
    with pytest.raises(UnreadableInput, match="cannot be read"):
        runner.answer(b"2 blame", "", soon())
    with pytest.raises(OverTime):
        runner.answer(b"3", "", time.monotonic())
    assert runner.answer(b"4", "", soon()).members == {"said": "answer 4"}
    assert runner.health().age >= 0


def test_an_output_that_cannot_be_sent_fails_its_request_alone(worker: tuple[BatchRunner, Running]) -> None:
    runner, running = worker
    original = running.model.predict
    running.model.predict = lambda inputs: [threading.Lock()] if inputs[0].number == 5 else original(inputs)  # type: ignore
    with pytest.raises(ModelFailed, match="cannot pickle"):
        runner.answer(b"5", "", soon())
    assert runner.answer(b"6", "", soon()).members == {"said": "answer 6"}


def test_waiting_ends_at_the_deadline_although_the_device_is_busy(
    worker: tuple[BatchRunner, Running], gate: threading.Event
) -> None:
    runner, running = worker
    entered = hold(running, gate)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(runner.answer, b"0", "", soon())
        assert entered.wait(10)
        began = time.monotonic()
        with pytest.raises(OverTime):
            runner.answer(b"1", "", began + 0.2)
        assert 0.2 <= time.monotonic() - began < 5
        gate.set()
        assert first.result(20).batch == 1
    assert running.model.calls == [[0]]


def test_full_queue_is_refused_at_once(config: Config, start: Callable[..., Running], gate: threading.Event) -> None:
    running = start(queue_max_items=1)
    runner = BatchRunner(config, KindModel(), client=lambda: None)
    runner.start()
    entered = hold(running, gate)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(runner.answer, b"0", "", soon())
        assert entered.wait(10)
        second = pool.submit(runner.answer, b"1", "", soon())
        wait_for(lambda: len(running.process._engine._queue) == 1, "a request in the queue")
        with pytest.raises(Busy) as caught:
            runner.answer(b"2", "", soon())
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
        gate.set()
        assert (first.result(20).batch, second.result(20).batch) == (1, 1)
    runner.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_client_that_leaves_is_not_computed(
    config: Config, worker: tuple[BatchRunner, Running], gate: threading.Event, family: socket.AddressFamily
) -> None:
    _, running = worker
    entered = hold(running, gate)
    ours, theirs = pair(family)
    other = BatchRunner(config, KindModel(), client=theirs.fileno)
    other.start()
    with ThreadPoolExecutor(2) as pool:
        runner = worker[0]
        first = pool.submit(runner.answer, b"0", "", soon())
        assert entered.wait(10)
        leaving = pool.submit(other.answer, b"1", "", soon())
        wait_for(lambda: len(running.process._engine._queue) == 1, "a request in the queue")
        # More of a request on the same connection is no reason to think that the client has left.
        ours.sendall(b"more")
        time.sleep(0.1)
        assert not leaving.done()
        ours.close()
        with pytest.raises(ClientLeft):
            leaving.result(10)
        gate.set()
        assert first.result(20).members == {"said": "answer 0"}
    assert running.model.calls == [[0]]
    theirs.close()
    other.close()


def pair(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair(family)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


def test_work_of_a_web_worker_that_dies_is_dropped(
    config: Config, worker: tuple[BatchRunner, Running], gate: threading.Event
) -> None:
    runner, running = worker
    entered = hold(running, gate)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(runner.answer, b"0", "", soon())
        assert entered.wait(10)
        assert config.channel is not None
        link = channel.connect(config.channel)
        assert link.receive()[0] == READY
        link.send(("work", 1, soon(), 1, "me", Item(1)))
        wait_for(lambda: len(running.process._engine._queue) == 1, "a request in the queue")
        link.close()
        wait_for(lambda: len(running.process._engine._queue) == 0, "an empty queue")
        gate.set()
        first.result(20)
    assert running.model.calls == [[0]]


def test_what_nobody_can_read_ends_its_connection_alone(config: Config, worker: tuple[BatchRunner, Running]) -> None:
    assert config.channel is not None
    link = channel.connect(config.channel)
    assert link.receive()[0] == READY
    link._frames.send_bytes(b"no pickle")
    with pytest.raises(LinkClosed):
        link.receive()
    link.close()
    assert worker[0].answer(b"1", "", soon()).batch == 1


def test_stop_finishes_what_it_holds(worker: tuple[BatchRunner, Running], gate: threading.Event) -> None:
    runner, running = worker
    entered = hold(running, gate)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(runner.answer, b"0", "", soon())]
        assert entered.wait(10)
        futures += [pool.submit(runner.answer, number, "", soon()) for number in (b"1", b"2")]
        wait_for(lambda: len(running.process._engine._queue) == 2, "two requests in the queue")
        running.process.stop()
        running.process.stop()
        wait_for(lambda: running.process._engine._stopping, "the stop to be seen")
        with pytest.raises(NotReady):
            runner.answer(b"3", "", soon())
        gate.set()
        assert [future.result(20).members["said"] for future in futures] == ["answer 0", "answer 1", "answer 2"]
    assert running.ended() == 0
    assert not running.process._path.exists()


def test_lost_context_ends_the_process_and_a_new_one_is_found(
    worker: tuple[BatchRunner, Running], start: Callable[..., Running]
) -> None:
    runner, running = worker
    with pytest.raises(NotReady) as caught:
        runner.answer(b"1 lost", "", soon())
    assert caught.value.retry_after == 1
    assert running.ended() == EXIT_BROKEN
    with pytest.raises(NotReady, match="started again"):
        runner.answer(b"2", "", soon())
    with pytest.raises(NotReady, match="started again"):
        runner.health()
    start()
    wait_for(lambda: healthy(runner), "the new model process")
    assert runner.answer(b"3", "", soon()).members == {"said": "answer 3"}


def healthy(runner: BatchRunner) -> bool:
    try:
        runner.health()
    except NotReady:
        return False
    return True


def test_start_waits_for_the_model(config: Config, monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    monkeypatch.setattr(ScriptedModel, "setup", lambda self, context: gate.wait(20) and None)
    running = Running(config, KindModel())
    runner = BatchRunner(config, KindModel(), client=lambda: None)
    thread = threading.Thread(target=runner.start)
    thread.start()
    wait_for(lambda: len(running.process._links) == 1, "a connection")
    late = BatchRunner(config, KindModel(), client=lambda: None)
    with pytest.raises(NotReady):
        late.answer(b"1", "", soon())
    assert thread.is_alive()
    gate.set()
    thread.join(10)
    assert runner.answer(b"1", "", soon()).batch == 1
    runner.close()
    running.process.stop()
    assert running.ended() == 0


def test_start_fails_with_the_reason_of_the_model_process(
    config: Config, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    def setup(self: Any, context: Any) -> None:
        gate.wait(20)
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ScriptedModel, "setup", setup)
    running = Running(config, KindModel())
    runner = BatchRunner(config, KindModel())
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(runner.start)
        wait_for(lambda: len(running.process._links) == 1, "a connection")
        gate.set()
        with pytest.raises(ModelProcessError, match="RuntimeError: no kernel image is available"):
            starting.result(20)
    assert running.ended() == EXIT_NOT_STARTED


def test_start_fails_when_the_model_process_dies(config: Config) -> None:
    assert config.channel is not None
    listening = channel.listen(config.channel)
    listening.setblocking(True)

    def die() -> None:
        link = channel.accept(listening)
        link.send(("loading",))
        link.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(die)
        with pytest.raises(ModelProcessError, match="ended while it loaded the model"):
            BatchRunner(config, KindModel()).start()
    listening.close()


def test_start_fails_when_there_is_no_model_process(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batch_runner.BIND_SECONDS", 0.1)
    with pytest.raises(ModelProcessError, match=r"no model process listens after 0\.1 s .*attach-daemon2"):
        BatchRunner(config, KindModel()).start()


def test_the_app_answers_with_the_size_of_the_batch(config: Config, start: Callable[..., Running]) -> None:
    start()
    app = create_app(config, KindModel())
    client = app.test_client()
    answer = client.post("/v1/test", data=b"5").get_json()
    assert answer["said"] == "answer 5"
    assert set(answer["timing_ms"]) == {"queue", "decode", "compute", "total", "batch"}
    assert answer["timing_ms"]["batch"] == 1
    assert client.get("/readyz").status_code == 200
    assert client.get("/version").get_json()["mode"] == "batch"
    response = client.post("/v1/test", data=b"6 poison")
    assert response.status_code == 500
    assert client.post("/v1/test", data=b"7", headers={"X-Request-Deadline-Ms": "0"}).status_code == 504
    app.runner.close()
