"""Mode batch under real uWSGI: web workers, and the model process that the vassal's master starts beside them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import MODEL_PROCESS, Reply, Server, batching, running, stop, uwsgi, uwsgi_ini, wait_for

OPTIONS = {"threads": "16", "attach-daemon2": MODEL_PROCESS}
TEXT = {"Content-Type": "text/plain"}

#: A model whose inputs say what becomes of it.
MODEL = """
import time

from inference.models.echo import EchoModel


class ObedientModel(EchoModel):
    def predict(self, inputs):
        texts = [one for one in inputs if isinstance(one, str)]
        if "hang" in texts:
            time.sleep(60)
        if "lose the context" in texts:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "poison" in texts:
            raise ValueError("poisoned")
        if len(inputs) > 2:
            raise MemoryError("room for two")
        return super().predict(inputs)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two web workers and an echo model that takes 100 ms for a batch."""
    folder = tmp_path_factory.mktemp("batch")
    with uwsgi(folder, 2, batching(folder, options='{"delay_ms": 100}'), **OPTIONS) as server:
        yield server


@pytest.fixture
def obedient(tmp_path: Path) -> Iterator[Server]:
    """Two web workers and a model that does what it is told, with a second for a request."""
    (tmp_path / "obedient.py").write_text(MODEL)
    variables = batching(tmp_path, model="obedient:ObedientModel", timeout_seconds="1", options='{"delay_ms": 50}')
    variables["PYTHONPATH"] = str(tmp_path)
    with uwsgi(tmp_path, 2, variables, **OPTIONS) as server:
        yield server


def ask(server: Server, text: str, **headers: str) -> Reply:
    return server.ask("POST", "/v1/parse", text.encode(), {**TEXT, **headers})


def ask_many(pool: ThreadPoolExecutor, server: Server, texts: list[str]) -> list[Future[Reply]]:
    """Send requests at the same time."""
    return [pool.submit(ask, server, text) for text in texts]


def model_process(server: Server) -> int:
    """Give the process id of the newest model process."""
    return int(server.lines("model_loaded")[-1]["pid"])


def is_ready(server: Server) -> bool:
    return server.ask("GET", "/readyz").status == 200


def ready_again(server: Server, former: int) -> None:
    """Wait for a model process after ``former``; until then everything is 503 and says when to come again."""

    def look() -> bool:
        reply = server.ask("GET", "/readyz")
        assert reply.status in (200, 503)
        assert reply.status == 200 or int(reply.headers["Retry-After"]) >= 1
        return reply.status == 200 and model_process(server) != former

    wait_for(look, f"another model process:\n{server.text()}")


def test_requests_are_computed_together_and_each_gets_its_own_answer(server: Server) -> None:
    texts = [f"text {number}" for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        replies = [future.result() for future in ask_many(pool, server, texts)]
    assert [reply.status for reply in replies] == [200] * 24
    answers = [reply.json() for reply in replies]
    assert [answer["echo"] for answer in answers] == texts
    assert max(answer["timing_ms"]["batch"] for answer in answers) > 1
    assert all(100 <= answer["timing_ms"]["compute"] < 5000 for answer in answers)
    assert sum(1 / answer["timing_ms"]["batch"] for answer in answers) < 24


def test_large_inputs_and_outputs_go_both_ways(server: Server) -> None:
    texts = [letter * 3_000_000 for letter in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        replies = [future.result() for future in ask_many(pool, server, texts)]
    assert [reply.json()["echo"] for reply in replies] == texts


def test_health_and_version(server: Server) -> None:
    assert server.ask("GET", "/version").json()["mode"] == "batch"
    assert is_ready(server)


def test_the_socket_is_for_its_owner_alone(server: Server) -> None:
    assert (server.log.parent / "model").stat().st_mode & 0o777 == 0o600


def test_deadline_of_the_client(server: Server) -> None:
    assert ask(server, "x", **{"X-Request-Deadline-Ms": "5000"}).status == 200
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, "first")
        time.sleep(0.05)
        assert ask(server, "second", **{"X-Request-Deadline-Ms": "20"}).status == 504
        assert first.result().status == 200
    assert ask(server, "x", **{"X-Request-Deadline-Ms": "soon"}).status == 400


def test_client_that_leaves_is_not_computed(tmp_path: Path) -> None:
    variables = batching(tmp_path, batch_max_items="1", options='{"delay_ms": 700}')
    with uwsgi(tmp_path, 1, variables, **OPTIONS) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "first")
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", server.port), 10) as leaving:
            leaving.sendall(b"POST /v1/parse HTTP/1.1\r\nHost: x\r\nX-Request-ID: left\r\nContent-Length: 1\r\n\r\nx")
            time.sleep(0.2)
        last = ask(server, "last").json()
        assert first.result().status == 200
        # It came after the first one alone: 0.3 s of that, then its own batch.
        assert last["timing_ms"]["queue"] < 700
        (line,) = [line for line in server.lines("request") if line["request_id"] == "left"]
        assert (line["status"], line["problem"]) == (499, "client-left")
        assert line["timing_ms"]["total"] < 700


def test_full_queue_is_503_with_the_time_until_there_is_room(tmp_path: Path) -> None:
    variables = batching(tmp_path, batch_max_items="1", queue_max_items="2", options='{"delay_ms": 1500}')
    with uwsgi(tmp_path, 1, variables, **OPTIONS) as server, ThreadPoolExecutor(6) as pool:
        assert ask(server, "measured").status == 200
        first = pool.submit(ask, server, "first")
        time.sleep(0.2)
        replies = [future.result() for future in ask_many(pool, server, ["x"] * 4)]
        assert first.result().status == 200
        assert sorted(reply.status for reply in replies) == [200, 200, 503, 503]
        for reply in replies:
            if reply.status == 503:
                # 1.3 s are left of the first one.
                assert reply.json()["type"] == "urn:inference-fleet:problem:busy"
                assert reply.headers["Retry-After"] == "2"


def test_poisoned_input_and_little_memory_fail_nobody_else(obedient: Server) -> None:
    texts = ["poison" if number == 5 else f"text {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        replies = [future.result() for future in ask_many(pool, obedient, texts)]
    assert [reply.status for reply in replies] == [200] * 5 + [500] + [200] * 6
    assert [reply.json()["echo"] for reply in replies if reply.status == 200] == texts[:5] + texts[6:]
    former = model_process(obedient)
    with ThreadPoolExecutor(12) as pool:
        replies = [future.result() for future in ask_many(pool, obedient, [f"text {number}" for number in range(12)])]
    assert [reply.status for reply in replies] == [200] * 12
    assert max(reply.json()["timing_ms"]["batch"] for reply in replies) <= 2
    assert is_ready(obedient)
    assert model_process(obedient) == former


def test_lost_context_ends_the_process_and_another_one_is_ready(obedient: Server) -> None:
    former = model_process(obedient)
    workers = obedient.lines("started")
    with ThreadPoolExecutor(4) as pool:
        replies = [future.result() for future in ask_many(pool, obedient, ["a", "lose the context", "b", "c"])]
    assert {reply.status for reply in replies} <= {200, 503}
    assert replies[1].status == 503
    wait_for(lambda: [line["exit_status"] for line in obedient.lines("device_broken")] == [87], "the status")
    ready_again(obedient, former)
    assert ask(obedient, "a").status == 200
    assert obedient.lines("started") == workers, "the web workers go on as they are"


def test_hanging_batch_ends_the_process_and_another_one_is_ready(obedient: Server) -> None:
    former = model_process(obedient)
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(ask, obedient, "hang", **{"X-Request-ID": "the-hanging-one"})
        time.sleep(0.3)
        behind = pool.submit(ask, obedient, "behind")
        assert behind.result().status == 504, "over its second"
        assert hanging.result().status == 503
    (line,) = obedient.lines("model_stuck")
    assert (line["request_ids"], line["exit_status"]) == (["the-hanging-one"], 86)
    ready_again(obedient, former)
    assert ask(obedient, "a").status == 200


def test_killed_model_process_is_started_again(obedient: Server) -> None:
    former = model_process(obedient)
    os.kill(former, signal.SIGKILL)
    reply = ask(obedient, "a")
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) >= 1
    ready_again(obedient, former)
    assert ask(obedient, "a").status == 200
    assert len(obedient.lines("started")) == 2


def test_killed_web_worker_is_started_again_beside_the_same_model_process(obedient: Server) -> None:
    former = model_process(obedient)
    os.kill(int(obedient.lines("started")[0]["pid"]), signal.SIGKILL)
    wait_for(lambda: len(obedient.lines("started")) == 3, "another web worker")
    assert ask(obedient, "a").status == 200
    assert model_process(obedient) == former


def test_graceful_stop_loses_no_request(tmp_path: Path) -> None:
    """As an emperor with ``emperor-graceful-shutdown`` asks for it."""
    fifo = tmp_path / "fifo"
    variables = batching(tmp_path, batch_max_items="2", options='{"delay_ms": 400}')
    with uwsgi(tmp_path, 2, variables, **OPTIONS, **{"master-fifo": str(fifo)}) as server:
        with ThreadPoolExecutor(8) as pool:
            futures = ask_many(pool, server, [f"text {number}" for number in range(8)])
            time.sleep(0.3)
            # q: stop gracefully.
            fifo.write_text("q")
            replies = [future.result() for future in futures]
        assert [reply.status for reply in replies] == [200] * 8
        assert [reply.json()["echo"] for reply in replies] == [f"text {number}" for number in range(8)]
        assert server.process.wait(30) == 0
        (line,) = [line for line in server.lines("stopped") if "exit_status" in line]
        assert line["exit_status"] == 0
        assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"options": '{"delay": 1}'}, "option 'delay': no such name; did you mean delay_ms?"),
        ({"accelerator": "cuda", "model": "unsound:UnsoundModel"}, "sees no CUDA device"),
        (
            {"model": "unsound:UnsoundModel"},
            "did not start: SampleError: model 'echo' on cpu: answer.",
        ),
        ({"model": "unsound:DyingModel"}, "the model process ended while it loaded the model; its log says why"),
    ],
)
def test_server_does_not_start_when_its_model_process_does_not(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    (tmp_path / "unsound.py").write_text(
        "import os, time\n"
        "from inference.models.echo import EchoModel\n"
        "class UnsoundModel(EchoModel):\n"
        "    uses_torch = True\n"
        "    def predict(self, inputs):\n"
        "        time.sleep(1)\n"
        "        return ['nonsense'] * len(inputs)\n"
        "class DyingModel(EchoModel):\n"
        "    def setup(self, context):\n"
        "        time.sleep(2)\n"
        "        os._exit(3)\n"
    )
    ini = uwsgi_ini(tmp_path, **OPTIONS)
    command = [str(Path(sys.executable).parent / "uwsgi"), "--ini", str(ini)]
    environ: dict[str, Any] = {**batching(tmp_path, **variables), "PYTHONPATH": str(tmp_path)}
    with running(command, tmp_path / "log", environ) as server:
        assert server.process.wait(30) != 0
        assert any(reason in line["reason"] for line in server.lines("not_started")), server.text()
        assert stop(server) != 0
