#!/usr/bin/env python3
"""Prints the lines that `./fleet logs --follow` gets of all hosts, in the order of their times, until Ctrl-C.

follow.py COMMAND...    COMMAND is ansible-playbook; its action host_logs sends here what comes on each host

A line is held back for a moment, so that an earlier one of another host can still come before it. Exit status 130 after
Ctrl-C, else 2: it ends by itself only when no host could be asked.
"""

import contextlib
import heapq
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
#: How long a line waits for earlier ones; hosts look for new lines about once a second.
HOLD_SECONDS = 2.0
TICK_SECONDS = 0.2
#: Seconds in which Ansible may end by itself.
END_SECONDS = 5.0
#: A fork for each host: none of them ends.
FORKS = "500"

Record = dict[str, Any]


class Merge:
    """Lines of several hosts, given out in the order of their times, each after it was held back.

    Args:
        hold: seconds.
        clock: gives the time in seconds.
    """

    def __init__(self, hold: float = HOLD_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold = hold
        self._clock = clock
        self._held: list[tuple[str, int, float, Record]] = []
        self._count = 0

    def add(self, records: Sequence[Record]) -> None:
        """Take lines of one host, in their order."""
        now = self._clock()
        for record in records:
            heapq.heappush(self._held, (str(record["time"]), self._count, now, record))
            self._count += 1

    def due(self, *, everything: bool = False) -> list[Record]:
        """The lines whose time has come: those held back long enough, and all that are earlier than one of these."""
        limit = self._clock() - self._hold
        latest = max((one[:2] for one in self._held if everything or one[2] <= limit), default=None)
        found = []
        while latest and self._held and self._held[0][:2] <= latest:
            found.append(heapq.heappop(self._held)[3])
        return found


class Follower:
    """Reads what the hosts send, and prints it."""

    def __init__(self, output: IO[str], errors: IO[str], form: str) -> None:
        self._output, self._errors, self._form = output, errors, form
        plugin = runpy.run_path(str(ROOT / "plugins" / "filter" / "logs.py"))
        self._record_of = plugin["record_of"]
        self._writer = plugin["Writer"]()
        self._merge = Merge()
        self._parts: dict[socket.socket, bytes] = {}

    def say(self, text: str) -> None:
        """Tell people; standard output is for the lines."""
        print(text, file=self._errors, flush=True)

    def take(self, message: dict[str, Any]) -> None:
        """One message of a host."""
        host = message["host"]
        if "note" in message:
            self.say(f"{host}: {message['note']}")
        self._merge.add([self._record_of(host, line) for line in message.get("lines", ())])

    def print_due(self, *, everything: bool = False) -> None:
        """Print what was held back long enough."""
        for record in self._merge.due(everything=everything):
            text = [json.dumps(record, ensure_ascii=False)] if self._form == "json" else self._writer.lines(record)
            for line in text:
                print(line, file=self._output)
        self._output.flush()

    def read(self, reader: socket.socket, selector: selectors.BaseSelector) -> None:
        """Take what a host has sent."""
        data = reader.recv(1 << 20)
        *whole, self._parts[reader] = (self._parts.get(reader, b"") + data).split(b"\n")
        for line in whole:
            self.take(json.loads(line))
        if not data:
            selector.unregister(reader)
            del self._parts[reader]
            reader.close()

    def run(self, listening: socket.socket, process: subprocess.Popen[str]) -> None:
        """Go on until the process has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            while process.poll() is None or self._parts:
                for key, _ in selector.select(TICK_SECONDS):
                    if key.fileobj is listening:
                        accepted, _ = listening.accept()
                        self._parts[accepted] = b""
                        selector.register(accepted, selectors.EVENT_READ)
                    else:
                        self.read(key.fileobj, selector)  # type: ignore[arg-type]
                self.print_due()


def hand_on(stream: IO[str], output: IO[str], ended: threading.Event) -> None:
    """Hand on what Ansible says, but not what it says about being stopped."""
    for line in stream:
        if not ended.is_set():
            output.write(line)
            output.flush()


def main(command: Sequence[str]) -> int:
    """Run a command and print what its hosts send; gives the exit status."""
    follower = Follower(sys.stdout, sys.stderr, os.environ.get("FLEET_FORMAT", "text"))
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = str(Path(folder) / "follow")
        listening.bind(path)
        listening.listen(1000)
        environment = {"ANSIBLE_FORKS": FORKS, **os.environ, "FLEET_FOLLOW_SOCKET": path}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        reader = threading.Thread(target=hand_on, args=(process.stderr, sys.stderr, ended), daemon=True)
        reader.start()
        status = 2
        try:
            follower.run(listening, process)
            reader.join(END_SECONDS)
        except (KeyboardInterrupt, BrokenPipeError) as stopped:
            status = 130 if isinstance(stopped, KeyboardInterrupt) else 141
        finally:
            ended.set()
            # Ansible has got the Ctrl-C as well; whoever stopped only this process has not told it.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    with contextlib.suppress(BrokenPipeError):
        follower.print_due(everything=True)
    return status


if __name__ == "__main__":
    # Also where Ctrl-C was ignored, as in the background of a script; and so that Ansible does not inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
