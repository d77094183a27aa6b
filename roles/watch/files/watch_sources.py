"""Where the watch of a host sees the driver's faults: the kernel's log, and NVML in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KMSG = Path("/dev/kmsg")
RECORD = re.compile(r"^\d+,(?P<cursor>\d+),[^;]*;(?P<text>.*)$", re.MULTILINE)
#: Between two tries to open a log, or to start a program, that has ended.
AGAIN_SECONDS = 2.0
#: NVML that says nothing for so many of its intervals, and these seconds, hangs in the driver.
SILENT_INTERVALS, SILENT_SECONDS = 3.0, 10.0

#: Takes what was seen: its kind, and what belongs to it.
Take = Callable[[str, dict[str, Any]], None]


def kernel_log() -> tuple[str, str]:
    """Which kernel log can be read, ``journal``, ``kmsg`` or an empty string, and why none can."""
    # In a container journald has no kernel messages; systemd says there that it is in one.
    systemd = Path("/run/systemd/system").is_dir() and not Path("/run/systemd/container").exists()
    if systemd and shutil.which("journalctl"):
        return "journal", ""
    try:
        with KMSG.open("rb", buffering=0) as stream:
            os.set_blocking(stream.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                stream.read(8192)
    except OSError as error:
        return (
            "",
            f"no systemd that has the kernel's messages, and {KMSG} cannot be read ({error.strerror}): in a container",
        )
    return "kmsg", ""


def journal(cursor: str, new_boot: bool, command: tuple[str, ...] = ("journalctl",)) -> Iterator[dict[str, Any]]:
    """Messages of the kernel from journald, until journalctl ends: ``text``, ``cursor``, ``old``, ``at`` (0: unknown).

    Args:
        cursor: the last one that is known; without one only the newest, as `old`, and what follows.
        new_boot: whether nothing of this boot is known yet, and all of it counts.

    Raises:
        OSError: it could not be started, or ended with an error.
    """
    begin = ["--no-tail"] if new_boot else [f"--after-cursor={cursor}"] if cursor else ["--lines=1"]
    words = [*command, "--dmesg", "--follow", "--output=json", "--quiet", *begin]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    known = bool(new_boot or cursor)
    assert process.stdout  # noqa: S101 - it is a pipe
    try:
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                text = found.get("MESSAGE")
                # Bytes that are no text come as a list of numbers.
                text = bytes(text).decode(errors="replace") if isinstance(text, list) else str(text)
                at = float(found.get("__REALTIME_TIMESTAMP") or 0) / 1e6
                yield {"text": text, "cursor": str(found.get("__CURSOR", "")), "old": not known, "at": at}
                known = True
        if code := process.wait():
            raise OSError(f"{command[0]} has ended with exit code {code}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def kmsg(cursor: str, new_boot: bool, path: Path = KMSG) -> Iterator[dict[str, Any]]:
    """Messages of the kernel's own buffer; the arguments are those of :func:`journal`."""
    known = bool(cursor or new_boot)
    with path.open("rb", buffering=0) as stream:
        # What is there already is read without waiting, to know where the new begins.
        os.set_blocking(stream.fileno(), known)
        while True:
            try:
                block = stream.read(8192)
            except BrokenPipeError:
                # Overwritten before it was read; the next read goes on with the oldest that is left.
                continue
            if block is None:
                known = True
                os.set_blocking(stream.fileno(), known)
                continue
            if not block:
                return
            for match in RECORD.finditer(block.decode(errors="replace")):
                if not cursor or int(match["cursor"]) > int(cursor):
                    yield {"text": match["text"], "cursor": match["cursor"], "old": not known, "at": 0.0}


class KernelLog(threading.Thread):
    """Hands over each message of the kernel, for ever.

    Args:
        messages: gives them, by the last cursor and whether nothing of this boot is known.
        take: called as ``take("line", {"text", "cursor", "old", "at"})``.
    """

    def __init__(
        self, messages: Callable[[str, bool], Iterator[dict[str, Any]]], take: Take, cursor: str, new_boot: bool
    ) -> None:
        super().__init__(name="kernel-log", daemon=True)
        self.messages, self.take, self.cursor, self.new_boot = messages, take, cursor, new_boot

    def run(self) -> None:
        """Read, and read on when the reader has ended."""
        while True:
            heard = False
            try:
                for one in self.messages(self.cursor, self.new_boot):
                    heard, self.cursor, self.new_boot = True, one["cursor"] or self.cursor, False
                    self.take("line", one)
                self.take("log", {"error": ""})
            except OSError as error:
                self.take("log", {"error": str(error)})
                # It may be a place that the log has no more.
                self.cursor = self.cursor if heard else ""
            time.sleep(AGAIN_SECONDS)


class NvmlProcess(threading.Thread):
    """Runs fleet_nvml.py, hands over what it says, and starts it again when it ends or hangs.

    Args:
        devices: UUIDs by the names of devices.
        seconds: between two looks.
        take: called as ``take("nvml", {...})`` with each of its lines, or ``{"error": why}``.
        program: its command, without arguments.
    """

    def __init__(self, devices: dict[str, str], seconds: float, take: Take, program: tuple[str, ...] = ()) -> None:
        super().__init__(name="nvml", daemon=True)
        self.devices, self.seconds, self.take = devices, seconds, take
        self.program = program or (sys.executable, "-I", str(Path(__file__).with_name("fleet_nvml.py")))
        self.ended = threading.Event()

    def stop(self) -> None:
        """End it; other devices are to be watched."""
        self.ended.set()

    def run(self) -> None:
        """Start it over and over."""
        while not self.ended.is_set():
            words = [*self.program, json.dumps(self.devices), str(self.seconds)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert process.stdout  # noqa: S101 - it is a pipe
            with process.stdout:
                why = self.follow(process.stdout.fileno())
            process.kill()
            if why:
                self.take("nvml", {"error": why})
            # One that hangs in the driver cannot be killed; a second one beside it would hang as well.
            while process.poll() is None and not self.ended.wait(0.1):
                pass
            self.ended.wait(AGAIN_SECONDS)

    def follow(self, handle: int) -> str:
        """Hand over the lines of a process until it ends or hangs; gives why it is not followed any more."""
        rest = b""
        deadline = self.seconds * SILENT_INTERVALS + SILENT_SECONDS
        heard = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while not self.ended.is_set():
                if not selector.select(0.5):
                    if time.monotonic() - heard > deadline:
                        return f"NVML does not answer for {deadline:g} s"
                    continue
                block = os.read(handle, 65536)
                if not block:
                    return "NVML's process has ended"
                heard = time.monotonic()
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        if found.get("error"):
                            return str(found["error"])
                        self.take("nvml", found)
        return ""
