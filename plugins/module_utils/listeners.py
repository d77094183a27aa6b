"""Who listens on which TCP port of this host, read from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A TCP socket that takes connections: address as in /proc (hexadecimal), port, owner's uid and inode."""

    address: str
    port: int
    uid: int
    inode: int

    @property
    def loopback(self) -> bool:
        """Whether only this host itself can reach it."""
        if len(self.address) == 8:
            return self.address.endswith("7F")
        return self.address == "00000000000000000000000001000000"


def listeners() -> list[Listener]:
    """All listeners, of both IP versions."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTEN:
                address, _, port = fields[1].partition(":")
                found.append(Listener(address, int(port, 16), int(fields[7]), int(fields[9])))
    return found


def sockets() -> Iterator[tuple[int, str, int]]:
    """``(process id, its name, inode)`` of every socket of those processes that this one may look into."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            name = (process / "comm").read_text().strip()
            for handle in (process / "fd").iterdir():
                if match := re.fullmatch(r"socket:\[(\d+)\]", str(handle.readlink())):
                    yield int(process.name), name, int(match[1])
        except OSError:
            continue


def nginx_master(pid_file: str = "/run/nginx.pid") -> int:
    """Process id of the running nginx, by its pid file: another nginx on this machine is not ours. 0 without one."""
    try:
        pid = int(Path(pid_file).read_text())
        return pid if (Path("/proc") / str(pid) / "comm").read_text().strip() == "nginx" else 0
    except (OSError, ValueError):
        return 0


def ports_of(process: int) -> set[int]:
    """Ports on which one process listens."""
    ports = {one.inode: one.port for one in listeners()}
    return {ports[inode] for pid, _, inode in sockets() if pid == process and inode in ports}


def holders(port: int) -> str:
    """Processes that listen on a port, as ``name (pid)``; empty when the port is free."""
    inodes = {one.inode for one in listeners() if one.port == port}
    if not inodes:
        return ""
    names = sorted({f"{name} ({pid})" for pid, name, inode in sockets() if inode in inodes})
    return ", ".join(names) or "a process that cannot be looked into"
