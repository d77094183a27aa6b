"""The address that edges share: an edge gives it away before its nginx is stopped, and only to one that can take it."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import processes
import pytest
import shared_address
from shared_address import NotMoved, aside_until, step_aside

ADDRESS = "192.0.2.10"


class Alive(BaseHTTPRequestHandler):
    """The nginx of an edge."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/.fleet/alive" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    """That of another edge, which answers at an address of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Alive)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "aside"


def moves(monkeypatch: pytest.MonkeyPatch, *held: bool, taken: bool = True) -> None:
    """Be keepalived: whether this edge has the address, question by question, and whether another one takes it."""
    left = list(held)
    monkeypatch.setattr(shared_address, "holds", lambda address: left.pop(0) if len(left) > 1 else left[0])
    answers = shared_address.answers
    monkeypatch.setattr(
        shared_address, "answers", lambda address, port: taken if address == ADDRESS else answers(address, port)
    )


def test_it_waits_until_another_edge_has_the_address(port: int, flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch, True, True, True, False)
    assert step_aside(ADDRESS, port, ["127.0.0.1"], flag, 60)
    assert aside_until(flag) == pytest.approx(time.time() + 60, abs=5)
    assert flag.stat().st_mode & 0o444 == 0o444, "keepalived's check has no rights"


def test_one_without_the_address_does_not_wait(port: int, flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch, False, taken=False)
    assert not step_aside(ADDRESS, port, ["127.0.0.1"], flag, 60)
    assert aside_until(flag) > time.time(), "it does not get it in the middle of its restart"


@pytest.mark.parametrize("peers", [[], ["127.0.0.1"]])
def test_without_another_edge_that_answers_it_keeps_the_address(
    flag: Path, peers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves(monkeypatch, True)
    (port,) = processes.free_ports()
    with pytest.raises(NotMoved, match=r"no other edge answers.*allow_outage=true"):
        step_aside(ADDRESS, port, peers, flag, 60)
    assert not flag.exists()


@pytest.mark.parametrize("held", [[True], [True, False]])
def test_when_nobody_takes_it_it_takes_it_back(
    port: int, flag: Path, held: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves(monkeypatch, *held, taken=False)
    monkeypatch.setattr(shared_address, "MOVE_SECONDS", 0.3)
    with pytest.raises(NotMoved, match=r"no other edge took 192\.0\.2\.10 within 0\.3 s"):
        step_aside(ADDRESS, port, ["127.0.0.1"], flag, 60)
    assert not flag.exists()


def test_an_address_of_this_machine_is_known() -> None:
    assert shared_address.holds("127.0.0.1")
    assert not shared_address.holds(ADDRESS)


def test_a_flag_that_cannot_be_read_holds_no_edge_back(flag: Path) -> None:
    assert aside_until(flag) == 0
    flag.write_text("soon")
    assert aside_until(flag) == 0
