"""Mode batch under real uWSGI: web workers, and the model process that the vassal's master starts beside them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import MODEL_PROCESS, Reply, Server, batching, uwsgi

OPTIONS = {"threads": "16", "attach-daemon2": MODEL_PROCESS}
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two web workers and an echo model that takes 100 ms for a batch."""
    folder = tmp_path_factory.mktemp("batch")
    with uwsgi(folder, 2, batching(folder, options='{"delay_ms": 100}'), **OPTIONS) as server:
        yield server


def ask_many(server: Server, texts: list[str], **headers: str) -> list[Reply]:
    """Send requests at the same time, and give their answers in order."""
    with ThreadPoolExecutor(len(texts)) as pool:
        return list(pool.map(lambda text: server.ask("POST", "/v1/parse", text.encode(), {**TEXT, **headers}), texts))


def model_process(server: Server) -> int:
    """Give the process id of the model process: the one child of the master that is no worker."""
    line = server.lines("model_loaded")[-1]
    return int(line["pid"])


def test_requests_are_computed_together_and_each_gets_its_own_answer(server: Server) -> None:
    texts = [f"text {number}" for number in range(24)]
    replies = ask_many(server, texts)
    assert [reply.status for reply in replies] == [200] * 24
    assert [reply.json()["echo"] for reply in replies] == texts
    assert max(reply.json()["timing_ms"]["batch"] for reply in replies) > 1
    assert all(reply.json()["timing_ms"]["compute"] >= 100 for reply in replies)


def test_version_shows_the_mode(server: Server) -> None:
    assert server.ask("GET", "/version").json()["mode"] == "batch"
    assert server.ask("GET", "/readyz").json()["status"] == "ready"


def test_the_socket_is_for_its_owner_alone(server: Server) -> None:
    assert (server.log.parent / "model").stat().st_mode & 0o777 == 0o600
