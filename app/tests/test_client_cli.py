"""The command ``inference`` as a person runs it: a process of its own, against scripted servers and the real app."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from inference.client import Client, NotAnswered, Problem
from scripted import Scripted, cut, good, problem
from servers import Server, uwsgi

pytest_plugins = ["ocr_fixtures"]

IMAGES = Path(__file__).parent / "images"
PROGRAM = Path(sys.executable).parent / "inference"


def run(*arguments: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted.serving() as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files to send."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def by_file(**answers: scripted.Answer) -> scripted.Answer:
    """Answer by the name of the file: files under way at the same time arrive in any order."""

    def answer(handler: Any, request: scripted.Request) -> None:
        for name, one in answers.items():
            if f"{name}.png".encode() in request.body:
                return one(handler, request)
        return good()(handler, request)

    return answer


def test_one_file_is_its_text_alone(server: Scripted, files: list[Path]) -> None:
    done = run("parse", files[0], "--url", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "")


def test_several_files_have_headers_and_keep_their_order(server: Scripted, files: list[Path]) -> None:
    server.script = [by_file(a=scripted.after(0.5, good(text="first")))]
    done = run("parse", *files, "--url", server.url)
    a, b, c = files
    assert done.stdout == f"==> {a} <==\nfirst\n==> {b} <==\none\ntwo\n==> {c} <==\none\ntwo\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_json_is_one_line_for_each_file(server: Scripted, files: list[Path]) -> None:
    server.script = [by_file(b=problem(415, "unsupported-input"))]
    done = run("parse", *files, "--url", server.url, "--json")
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first == {"file": str(files[0]), **scripted.GOOD, "request_id": first["request_id"]}
    assert second["file"] == str(files[1])
    assert (second["problem"]["status"], second["problem"]["detail"]) == (415, "Seen 1.")
    assert third["text"] == "one\ntwo"
    assert done.returncode == 1


def test_what_failed_is_named_with_why_and_the_request_id(server: Scripted, files: list[Path]) -> None:
    server.script = [by_file(a=problem(422, "too-many-pixels"), c=cut)]
    done = run("parse", *files, "--url", server.url)
    ids = {
        name: request.headers["X-Request-ID"]
        for request in server.requests
        for name in "abc"
        if f"{name}.png".encode() in request.body
    }
    first, second, last = done.stderr.splitlines()
    assert first == f"{files[0]}: 422 Too-Many-Pixels: Seen 1. (request id {ids['a']})"
    assert second.startswith(f"{files[2]}: {server.url}/v1/parse: no whole answer: ")
    assert second.endswith(f"(request id {ids['c']})")
    assert last == "2 of 3 files failed"
    assert (done.returncode, done.stdout) == (1, f"==> {files[1]} <==\none\ntwo\n")


def test_a_busy_server_says_when_to_come_again(server: Scripted, files: list[Path]) -> None:
    server.script = [problem(503, "busy", Retry_After="900")]
    done = run("parse", files[0], "--url", server.url)
    assert done.returncode == 1
    assert "503 Busy: Seen 1. (it wants to be asked again after 900 s) (request id " in done.stderr


@pytest.mark.parametrize(("option", "suffix"), [("--text", ".txt"), ("--json", ".json")])
def test_answers_may_go_into_a_folder(
    server: Scripted, files: list[Path], tmp_path: Path, option: str, suffix: str
) -> None:
    server.script = [by_file(b=problem(400, "unreadable-input"))]
    folder = tmp_path / "new" / "answers"
    done = run("parse", *files, "--url", server.url, option, "--output", folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert sorted(path.name for path in folder.iterdir()) == [f"a.png{suffix}", f"c.png{suffix}"]
    text = (folder / f"a.png{suffix}").read_text()
    assert (json.loads(text)["text"] + "\n" if option == "--json" else text) == "one\ntwo\n"


def test_the_url_may_come_from_the_environment(server: Scripted, files: list[Path]) -> None:
    done = run("parse", files[0], env={**os.environ, "FLEET_URL": server.url})
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")


def test_standard_input(server: Scripted) -> None:
    done = run("parse", "-", "--url", server.url, input="not really an image")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")
    assert b"not really an image" in server.requests[0].body


def test_names_that_are_no_utf8(server: Scripted, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    names = [folder + b"/\xe4.png", folder + b"/\xf6.png"]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(b"x")
    done = run("parse", *names, "--json", "--url", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["one\ntwo"] * 2


def test_route_timeout_headers_and_jobs(server: Scripted, files: list[Path]) -> None:
    server.script = [scripted.after(0.3, good())]
    options = ["--route", "/v1/other", "--timeout", "9.5", "--header", "X-Key: a: b", "--jobs", "1"]
    assert run("parse", *files, "--url", server.url, *options).returncode == 0
    for request in server.requests:
        assert (request.path, request.headers["X-Key"]) == ("/v1/other", "a: b")
        assert int(request.headers["X-Request-Deadline-Ms"]) <= 9500
    assert min(server.waits()) >= 0.3


def test_a_slow_server_and_a_timeout(server: Scripted, files: list[Path]) -> None:
    server.script = [scripted.after(5, good())]
    done = run("parse", files[0], "--url", server.url, "--timeout", "0.4")
    assert done.returncode == 1
    assert "no whole answer within the timeout (request id " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'FILE...'"),
        (["missing.png"], "'missing.png' does not exist, seen from "),
        (["folder"], "'folder' is a directory; name its files, for example folder/*.png"),
        (["a.png", "--jobs", "0"], "0 is not in the range 1<=x<=64"),
        (["a.png", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["a.png", "--url", "localhost:8100"], "url 'localhost:8100': must be like http://localhost:8100"),
        (["a.png", "--route", "v1"], "route 'v1': must begin with /"),
        (["-", "a.png", "-"], "- stands for the standard input, which can be read only once"),
        (["a.png", "--header", "none"], "'none' is not of the form 'NAME: VALUE'"),
        (["a.png", "folder/../a.png", "--output", "out"], "their answers would all be out/a.png.txt"),
        (["a.png", "--output", "a.png"], "a.png"),
        (["a.png", "--output", "a.png/below"], "the folder a.png/below cannot be made: Not a directory"),
        (["a.png", "--jsom"], "--jsom"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_sends_nothing(
    server: Scripted, files: list[Path], tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "folder").mkdir()
    url = [] if "--url" in arguments else ["--url", server.url]
    done = run("parse", *arguments, *url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert not server.requests


def test_nobody_listens(files: list[Path]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = run("parse", files[0], "--url", url, "--timeout", "0.3")
    assert done.returncode == 1
    assert f"{files[0]}: {url}/v1/parse: no connection: Connection refused; check the address" in done.stderr


def on_a_terminal(arguments: list[str | Path], **outputs: Any) -> tuple[int, str]:
    """Run it with a terminal as its error output; gives the exit status and what the terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([PROGRAM, *arguments], stderr=theirs, **outputs)
    os.close(theirs)
    seen = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(4096)
            except OSError:
                # What Linux says once nobody holds the other end.
                break
            if not piece:
                break
            seen += piece
    return process.wait(30), seen.decode()


def test_the_bar_is_on_a_terminal_only(server: Scripted, files: list[Path], tmp_path: Path) -> None:
    server.script = [by_file(b=problem(400, "unreadable-input"))]
    with (tmp_path / "out").open("w") as out:
        status, seen = on_a_terminal(["parse", *files, "--url", server.url], stdout=out)
    assert status == 1
    assert "3/3" in seen
    # What failed stands on a line of its own, not in the middle of the bar.
    assert f"\x1b[2K{files[1]}: 400 Unreadable-Input" in seen
    assert "1 of 3 files failed" in seen
    assert (tmp_path / "out").read_text().startswith(f"==> {files[0]} <==\none\n")
    _, seen = on_a_terminal(["parse", files[0], "--url", server.url], stdout=subprocess.DEVNULL)
    assert seen == "", "one file needs no bar"


def test_help_names_the_commands_and_the_exit_status() -> None:
    assert "parse  Read the text in images." in run("--help").stdout
    assert "Exit status: 0 all files were read, 1 some failed, 2 the call is wrong." in run("parse", "-h").stdout


# ---- the real app


@pytest.fixture(scope="module")
def real(ocr_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The OCR service under uWSGI."""
    variables = {
        "INFERENCE_ARTIFACTS": str(ocr_artifacts),
        "INFERENCE_ACCELERATOR": "cpu",
        "INFERENCE_TIMEOUT_SECONDS": "60",
    }
    # It loads a real model, which on a busy machine takes longer than other waits.
    with uwsgi(tmp_path_factory.mktemp("uwsgi"), 1, variables, seconds=120) as server:
        yield server


def test_the_real_service_reads_an_image(real: Server) -> None:
    expected = json.loads((IMAGES / "expected.json").read_text())["invoice.png"]
    with Client(f"http://127.0.0.1:{real.port}") as client:
        answer = client.parse(IMAGES / "invoice.png", request_id="real-1", timeout=50)
        assert (answer.request_id, answer.model, answer.device, answer.attempts) == ("real-1", "pp-ocrv6", "cpu0", 1)
        assert answer.text == "\n".join(line.text for line in answer.lines)
        assert sorted(line.text for line in answer.lines) == sorted(expected)
        for line in answer.lines:
            assert 0.5 < line.score <= 1
            assert all(0 <= x <= answer.width and 0 <= y <= answer.height for x, y in line.box)
        assert 0 < answer.timing_ms.compute < answer.timing_ms.total
        with pytest.raises(Problem) as caught:
            client.parse(b"no image", request_id="real-2")
    assert (caught.value.status, caught.value.slug, caught.value.request_id) == (415, "unsupported-input", "real-2")
    # The server knew how long the client would wait.
    assert [line["status"] for line in real.lines("request") if line["request_id"] == "real-1"] == [200]


def test_the_real_service_does_not_compute_what_nobody_waits_for(real: Server) -> None:
    with Client(f"http://127.0.0.1:{real.port}") as client, pytest.raises((Problem, NotAnswered)) as caught:
        client.parse(IMAGES / "receipt.png", timeout=0.002)
    assert "deadline" in caught.value.detail or "timeout" in caught.value.detail


def test_the_real_service_from_the_shell(real: Server) -> None:
    done = run("parse", IMAGES / "tiny.png", IMAGES / "receipt.png", "--url", f"http://127.0.0.1:{real.port}", "--json")
    assert done.returncode == 0, done.stderr
    assert "CORNER BAKERY" in json.loads(done.stdout.splitlines()[1])["text"]
