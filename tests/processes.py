"""Start real servers for a test, wait for them, and end them by their process ids."""

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
#: Seconds that any single wait may take; far more than is needed on a busy machine.
PATIENCE_SECONDS = 30.0
#: Every process below a server has this variable with the server's mark, however far it moved from its parent.
MARK = "FLEET_TEST_SERVER"


def wait_for(condition: Callable[[], T], what: str | Callable[[], str], seconds: float = PATIENCE_SECONDS) -> T:
    """Wait until ``condition`` gives something true, and give that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.03)
    raise AssertionError(f"waited {seconds:g} s in vain for {what if isinstance(what, str) else what()}")


def free_ports(count: int = 1, stride: int = 1) -> list[int]:
    """Ports on which nothing listens, ``stride`` apart, below those that the kernel gives to clients."""
    # Tests beside each other must not choose the same ones before anybody listens there.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(20000 + 2500 * (worker % 4) + os.getpid() % 2500, 32000 - count * stride, 7):
        ports = [first + number * stride for number in range(count)]
        if not any(listens(port) for port in ports):
            return ports
    raise AssertionError("no free ports")


def listens(port: int) -> bool:
    """Whether a loopback port of this machine takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def runs(pid: int) -> bool:
    """Whether a process still has anything open: one whose threads have all ended has not."""
    try:
        # The first thread may be a zombie while others still hold the sockets.
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return runs(pid)
    return len(threads) > 1 or any(text.rpartition(")")[2].split()[0] != "Z" for text in threads)


@dataclass
class Server:
    """A running server and what it writes."""

    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, insist after a while; gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def processes(self) -> set[int]:
        """Ids of all its processes that still run."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(
                    b"\0"
                ):
                    found.add(int(entry.name))
            except OSError:
                continue
        return found


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    end: int = signal.SIGTERM,
    cwd: Path | None = None,
) -> Iterator[Server]:
    """Run a server until the end of the block; then neither it nor a child of it is left."""
    mark = str(uuid.uuid4())
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("INFERENCE_", "FLEET_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean, MARK: mark, **(environment or {})},
            cwd=cwd or log.parent,
            start_new_session=True,
        )
    server = Server(process, log, mark)
    try:
        yield server
    finally:
        known = server.processes()
        server.stop(end)
        # What a killed server leaves behind must not disturb the next test, nor outlive the run.
        while left := server.processes():
            known |= left
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        # One that dies has lost its memory, with its mark, before it closes its sockets.
        wait_for(lambda: not any(map(runs, known)), "killed processes to end")
