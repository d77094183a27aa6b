"""The client against a real server whose answers are scripted."""

from __future__ import annotations

import io
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import scripted
from inference.client import Answer, BadAnswer, Client, Line, NotAnswered, NotReached, Problem
from scripted import Scripted, cut, drops, good, half, plain, problem
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted.serving() as server:
        yield server


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def image_of(request: scripted.Request) -> tuple[str | None, bytes]:
    """The form's one file, as Werkzeug reads it."""
    kind, options = parse_options_header(request.headers["Content-Type"])
    # Into memory: its temporary files it leaves to the garbage collector.
    parser = FormDataParser(stream_factory=lambda *_, **__: io.BytesIO())
    _, _, files = parser.parse(io.BytesIO(request.body), kind, int(request.headers["Content-Length"]), options)
    return files["image"].filename, files["image"].read()


def test_needs_neither_torch_nor_flask() -> None:
    script = (
        "import sys, inference.client, inference.client.cli;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'flask', 'werkzeug', 'numpy', 'PIL', 'requests', 'onnxruntime'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_says_what_to_install_when_urllib3_is_missing() -> None:
    script = "import sys; sys.modules['urllib3'] = None; import inference.client"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "mend it with: pip install 'inference[client]'" in done.stderr.splitlines()[-1]


# ---- an answer


def test_answer_is_typed(client: Client) -> None:
    answer = client.parse(b"abc", request_id="me-1")
    assert (answer.request_id, answer.model, answer.release, answer.device) == ("me-1", "pp-ocrv6", "r1", "cpu0")
    assert (answer.width, answer.height, answer.text, answer.attempts) == (90, 30, "one\ntwo", 1)
    assert answer.lines[1] == Line("two", 0.8, ((1.0, 12.0), (30.0, 12.0), (30.0, 19.0), (1.0, 19.0)))
    assert (answer.timing_ms.compute, answer.timing_ms.batch) == (5.0, None)
    assert answer.members["timing_ms"] == scripted.GOOD["timing_ms"]
    with pytest.raises(AttributeError):
        answer.text = "other"  # type: ignore[misc]


def test_answer_of_mode_batch(client: Client, server: Scripted) -> None:
    server.script = [good(timing_ms={**scripted.GOOD["timing_ms"], "batch": 7})]
    assert client.parse(b"abc").timing_ms.batch == 7


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "file", "buffer"])
def test_every_kind_of_source(client: Client, server: Scripted, tmp_path: Path, kind: str) -> None:
    data = bytes(range(256)) * 1000 + b"\r\n--"
    path = tmp_path / "Größe 1.png"
    path.write_bytes(data)
    name = "image" if kind in ("bytes", "buffer") else path.name
    if kind == "file":
        with path.open("rb") as file:
            client.parse(file)
    else:
        sources = {"path": path, "text": str(path), "bytes": data, "buffer": io.BytesIO(data)}
        client.parse(sources[kind])
    assert image_of(server.requests[0]) == (name, data)


def test_sources_that_are_none(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.parse(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        client.parse(tmp_path)
    with pytest.raises(TypeError, match="not int"):
        client.parse(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mode 'rb'"):
        client.parse(io.StringIO("x"))  # type: ignore[arg-type]


def test_headers_of_a_request(server: Scripted) -> None:
    url = server.url.replace("//", "//me:secret@") + "/behind/"
    with Client(url, route="/v1/other", headers={"X-Mine": "1"}) as client:
        client.parse(b"abc")
        assert "secret" not in client.url
    request = server.requests[0]
    assert request.path == "/behind/v1/other"
    assert (request.headers["X-Mine"], request.headers["Authorization"]) == ("1", "Basic bWU6c2VjcmV0")
    assert re.fullmatch("[0-9a-f]{32}", request.headers["X-Request-ID"])
    assert "X-Request-Deadline-Ms" not in request.headers
    assert "Transfer-Encoding" not in request.headers


def test_the_server_is_told_the_timeout(client: Client, server: Scripted) -> None:
    client.parse(b"abc", timeout=7)
    assert 6500 < int(server.requests[0].headers["X-Request-Deadline-Ms"]) <= 7000


def test_connections_are_kept(client: Client, server: Scripted) -> None:
    server.script = [good(), problem(400, "unreadable-input"), good()]
    client.parse(b"abc")
    with pytest.raises(Problem):
        client.parse(b"abc")
    client.parse(b"abc")
    assert len({request.connection for request in server.requests}) == 1


# ---- problems


def test_problem_has_all_members(client: Client, server: Scripted) -> None:
    server.script = [problem(415, "unsupported-input")]
    with pytest.raises(Problem) as caught:
        client.parse(b"abc", request_id="me-2")
    error = caught.value
    assert (error.type, error.slug) == ("urn:inference-fleet:problem:unsupported-input", "unsupported-input")
    assert (error.status, error.title, error.detail) == (415, "Unsupported-Input", "Seen 1.")
    assert (error.request_id, error.retry_after, error.extensions) == ("me-2", None, {})
    assert str(error) == "415 Unsupported-Input: Seen 1."
    assert len(server.requests) == 1


def test_problem_of_something_on_the_way(client: Client, server: Scripted) -> None:
    server.script = [plain(500, b"<html>\n  oh no </html>", Content_Type="text/html")]
    with pytest.raises(Problem, match=r"500 Internal Server Error: <html> oh no </html>") as caught:
        client.parse(b"abc", request_id="me-3")
    assert (caught.value.type, caught.value.slug, caught.value.request_id) == ("about:blank", "", "me-3")


def test_redirect_is_not_followed(client: Client, server: Scripted) -> None:
    server.script = [plain(301, Location="https://elsewhere.example.com/")]
    with pytest.raises(Problem, match=r"301 .* it leads to https://elsewhere\.example\.com/"):
        client.parse(b"abc")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (plain(200, b"<html>Sign in"), "does not answer with JSON but with '<html>Sign in'"),
        (plain(200, b'{"echo": 1}'), r"as an OCR service does \(KeyError: 'timing_ms'\); check the route"),
        (plain(200, b"[]"), "TypeError"),
        (good(lines=[{"text": "a", "score": 1, "box": [[1, 2]]}]), "ValueError"),
    ],
)
def test_answers_of_another_kind(client: Client, server: Scripted, answer: scripted.Answer, said: str) -> None:
    server.script = [answer]
    with pytest.raises(BadAnswer, match=said):
        client.parse(b"abc")
    assert len(server.requests) == 1


# ---- what is sent again


@pytest.mark.parametrize("status", [429, 503])
def test_busy_is_asked_again_when_it_says(client: Client, server: Scripted, status: int) -> None:
    server.script = [problem(status, "busy", Retry_After="1"), good()]
    answer = client.parse(b"abc")
    assert answer.attempts == 2
    assert 1.0 <= server.waits()[0] < 1.9
    assert len({request.headers["X-Request-ID"] for request in server.requests}) == 1
    assert [image_of(request)[1] for request in server.requests] == [b"abc", b"abc"]


def test_retry_after_may_be_a_date(client: Client, server: Scripted) -> None:
    # Dates have whole seconds: this one is between 1 and 2 seconds ahead.
    server.script = [problem(503, "busy", Retry_After=formatdate(int(time.time()) + 2, usegmt=True)), good()]
    assert client.parse(b"abc").attempts == 2
    assert 0.9 <= server.waits()[0] < 2.5


@pytest.mark.parametrize("header", [{}, {"Retry_After": "soon"}])
def test_busy_without_a_time_is_asked_again_after_a_pause(
    client: Client, server: Scripted, header: dict[str, str]
) -> None:
    server.script = [problem(503, "busy", **header), problem(503, "busy", **header), good()]
    assert client.parse(b"abc").attempts == 3
    first, second = server.waits()
    assert 0.4 < first < 0.9 < second < 1.6


def test_busy_for_too_long_is_not_waited_for(client: Client, server: Scripted) -> None:
    server.script = [problem(503, "busy", Retry_After="3600")]
    began = time.monotonic()
    with pytest.raises(Problem) as caught:
        client.parse(b"abc")
    assert (caught.value.slug, caught.value.retry_after) == ("busy", 3600)
    assert time.monotonic() - began < 1


def test_the_timeout_bounds_all_attempts(client: Client, server: Scripted) -> None:
    server.script = [problem(503, "busy", Retry_After="1")]
    began = time.monotonic()
    with pytest.raises(Problem, match="503"):
        client.parse(b"abc", timeout=2.5)
    assert len(server.requests) == 3
    assert time.monotonic() - began < 2.5
    left = [int(request.headers["X-Request-Deadline-Ms"]) for request in server.requests]
    assert left == sorted(left, reverse=True)
    assert left[2] < 500


def test_without_retries(server: Scripted) -> None:
    server.script = [problem(503, "busy", Retry_After="1")]
    with Client(server.url, retry_seconds=0) as client, pytest.raises(Problem):
        client.parse(b"abc")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (problem(504, "over-time"), Problem, "504"),
        (problem(502, "bad-gateway"), Problem, "502"),
        (problem(500, "internal-error"), Problem, "500"),
        (half, NotAnswered, "no whole answer"),
        (cut, NotAnswered, "no whole answer"),
    ],
    ids=["504", "502", "500", "half", "cut"],
)
def test_what_may_have_been_computed_is_not_sent_again(
    client: Client, server: Scripted, answer: scripted.Answer, error: type[Exception], said: str
) -> None:
    server.script = [answer, good()]
    with pytest.raises(error, match=said):
        client.parse(b"abc")
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [problem(504, "over-time"), half, cut], ids=["504", "half", "cut"])
def test_it_is_when_that_is_asked_for(server: Scripted, answer: scripted.Answer) -> None:
    server.script = [answer, good()]
    with Client(server.url, retry_sent=True) as client:
        assert client.parse(b"abc").attempts == 2


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 422, 500])
def test_what_will_not_get_better_is_never_sent_again(server: Scripted, status: int) -> None:
    server.script = [problem(status, "x", Retry_After="0"), good()]
    with Client(server.url, retry_sent=True) as client, pytest.raises(Problem):
        client.parse(b"abc")
    assert len(server.requests) == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(client: Client, server: Scripted) -> None:
    """As nginx does when it loads its configuration; once, and only when it had brought an answer before."""
    server.script = [good(), cut, good()]
    client.parse(b"abc")
    assert client.parse(b"abc").attempts == 2
    server.script = [cut]
    with pytest.raises(NotAnswered):
        client.parse(b"abc")
    assert len(server.requests) == 5


# ---- slow, and not there


def test_slow_answer_ends_with_the_timeout(client: Client, server: Scripted) -> None:
    server.script = [scripted.after(2, good())]
    began = time.monotonic()
    with pytest.raises(NotAnswered, match="no whole answer within the timeout"):
        client.parse(b"abc", timeout=0.5)
    assert 0.4 < time.monotonic() - began < 1.5


def test_answer_drop_by_drop_ends_with_the_timeout(client: Client, server: Scripted) -> None:
    server.script = [drops]
    began = time.monotonic()
    with pytest.raises(NotAnswered, match="no whole answer within the timeout"):
        client.parse(b"abc", timeout=0.5)
    assert 0.4 < time.monotonic() - began < 1.5


def test_a_server_that_does_not_read_ends_with_the_timeout() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, Client(url, timeout=0.5) as client:
        began = time.monotonic()
        with pytest.raises(NotAnswered, match="within the timeout"):
            client.parse(bytes(40_000_000))
        assert 0.4 < time.monotonic() - began < 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_refused_names_the_address_and_what_to_check() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retry_seconds=0) as client, pytest.raises(NotReached) as caught:
        client.parse(b"abc", request_id="me-4")
    assert f"{url}/v1/parse: no connection: Connection refused; check the address" in caught.value.detail
    assert caught.value.members()["request_id"] == "me-4"


def test_a_server_that_is_about_to_start_is_waited_for() -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client:
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(client.parse(b"abc")))
        thread.start()
        time.sleep(0.3)
        with scripted.serving(port):
            thread.join()
    assert answers[0].attempts == 2


def test_refused_for_too_long_ends_within_the_timeout() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", timeout=1) as client:
        began = time.monotonic()
        with pytest.raises(NotReached):
            client.parse(b"abc")
        assert time.monotonic() - began < 1.2


def test_a_name_that_does_not_exist() -> None:
    with Client("http://no-such-host.invalid", retry_seconds=0) as client, pytest.raises(NotReached, match="invalid"):
        client.parse(b"abc")


def test_a_server_without_tls_is_not_asked_again(server: Scripted) -> None:
    with Client(server.url.replace("http:", "https:")) as client, pytest.raises(NotReached, match="no TLS connection"):
        client.parse(b"abc")
    assert ssl.HAS_TLSv1_3


@pytest.mark.parametrize("url", ["localhost:8100", "ftp://x", "http://", "", "http://x?y=1", "http://x:port"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="must be like http://localhost:8100"):
        Client(url)


@pytest.mark.parametrize(
    "settings",
    [{"route": "v1"}, {"timeout": 0}, {"retry_seconds": -1}, {"jobs": 0}, {"connect_seconds": float("nan")}],
    ids=str,
)
def test_settings_that_are_none(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Client(**settings)  # type: ignore[arg-type]


def test_calls_that_are_none(client: Client, server: Scripted) -> None:
    with pytest.raises(ValueError, match="request_id 'a b'"):
        client.parse(b"abc", request_id="a b")
    with pytest.raises(ValueError, match="timeout=0"):
        client.parse(b"abc", timeout=0)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.parse(b"abc")
    assert not server.requests


# ---- many


def test_many_are_asked_at_the_same_time_and_come_in_order(server: Scripted, tmp_path: Path) -> None:
    server.script = [scripted.after(0.3, good())]
    sources = [b"%d" % number for number in range(12)]
    with Client(server.url, jobs=6) as client:
        began = time.monotonic()
        outcomes = list(client.parse_all(sources))
        assert time.monotonic() - began < 2
    assert [outcome.source for outcome in outcomes] == sources
    assert all(outcome.answer for outcome in outcomes)
    assert len({request.headers["X-Request-ID"] for request in server.requests}) == 12
    assert len({request.connection for request in server.requests}) <= 6


def test_one_that_fails_does_not_stop_the_others(client: Client, server: Scripted, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"abc")
    outcomes = list(client.parse_all([image, tmp_path / "missing.png", b"x"]))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), FileNotFoundError, type(None)]


def test_sources_are_taken_as_they_are_needed(client: Client) -> None:
    taken = 0

    def sources() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x"

    outcomes = client.parse_all(sources())
    next(outcomes)
    assert taken < 20
    outcomes.close()  # type: ignore[attr-defined]


def test_who_leaves_early_does_not_wait_for_pauses(client: Client, server: Scripted) -> None:
    busy = problem(503, "busy", Retry_After="30")
    server.script = [lambda handler, request: (good() if b"first" in request.body else busy)(handler, request)]
    outcomes = client.parse_all([b"first", *[b"x"] * 11])
    began = time.monotonic()
    assert next(outcomes).answer
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
