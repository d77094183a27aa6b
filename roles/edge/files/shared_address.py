"""The address that the edges share: whether this one has it, and how it gives it to another one for a while.

Installed beside fleet-edge as /usr/local/lib/fleet/shared_address.py by the role edge. Needs no more than Python.
keepalived moves the address when its check fails; a flag makes the check fail while nginx still answers.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: keepalived asks every second and believes two answers; then the address moves within two seconds.
MOVE_SECONDS = 20.0
#: After it keepalived knows that this edge may have the address again.
NOTICED_SECONDS = 4.0
POLL_SECONDS = 0.1


class NotMoved(Exception):
    """The address stays where it was; the text says why, and what mends it."""


def ask(address: str, port: int, seconds: float) -> None:
    """Ask an nginx of an edge whether it answers.

    Raises:
        OSError: it does not, or with something else than it should.
    """
    # By hand: http.client takes longer to import than all the rest, and this runs every second.
    with socket.create_connection((address, port), timeout=seconds) as link:
        link.sendall(b"GET /.fleet/alive HTTP/1.0\r\nHost: edge\r\n\r\n")
        answer = link.recv(64)
    if not re.match(rb"HTTP/1\.[01] 200 ", answer):
        raise OSError(f"answers {answer[:20]!r}")


def answers(address: str, port: int) -> bool:
    """Whether an nginx of an edge answers at an address."""
    try:
        ask(address, port, 2)
    except OSError:
        return False
    return True


def holds(address: str) -> bool:
    """Whether this machine has an address."""
    command = ["ip", "-json", "address", "show", "to", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and any(one.get("addr_info") for one in json.loads(done.stdout or "[]"))


def aside_until(flag: Path) -> float:
    """Until when this edge wants no address, in seconds since 1970; it ends by itself, should nobody else end it."""
    try:
        return float(flag.read_text())
    except (OSError, ValueError):
        return 0.0


def wait(whether: Callable[[], bool], seconds: float) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not whether():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def step_aside(address: str, port: int, peers: Iterable[str], flag: Path, seconds: float) -> bool:
    """Have another edge take the address; gives whether this one had it.

    Args:
        address: the shared one.
        port: one on which every edge answers.
        peers: addresses of the other edges.
        flag: file that makes keepalived's check fail.
        seconds: longest time for which it does.

    Raises:
        NotMoved: no other edge can take it, or none did; this one keeps it.
    """
    peers = list(peers)
    if not any(answers(peer, port) for peer in peers):
        raise NotMoved(
            f"no other edge answers on port {port} (asked: {', '.join(peers) or 'none'}), so none could take {address}."
            " Nothing was stopped. Mend another edge first, or lose the requests meanwhile: -e allow_outage=true"
        )
    had = holds(address)
    flag.write_text(f"{time.time() + seconds}\n")
    flag.chmod(0o644)
    gone = not had or wait(lambda: not holds(address), MOVE_SECONDS)
    if had and not (gone and wait(lambda: answers(address, port), MOVE_SECONDS)):
        flag.unlink()
        raise NotMoved(
            f"no other edge took {address} within {MOVE_SECONDS:g} s; this one takes it back. Nothing was stopped. "
            "Look on all edges: journalctl -u keepalived -n 50"
        )
    return had
