"""How much memory is free on a host and its devices, and how much its vassals take: measured, not configured."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def meminfo_mib(name: str) -> int:
    """A value of /proc/meminfo in MiB."""
    match = re.search(rf"^{name}:\s+(\d+) kB", (PROC / "meminfo").read_text(), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def free_host_mib() -> int:
    """MiB that new processes may take: what the kernel says is available, or what is left of the cgroup's limit."""
    free = meminfo_mib("MemAvailable")
    limit, used, caches = CGROUP / "memory.max", CGROUP / "memory.current", CGROUP / "memory.stat"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        # The cache of files counts as used there, and goes when it must.
        match = re.search(r"^inactive_file (\d+)$", caches.read_text(), re.MULTILINE) if caches.is_file() else None
        taken = int(used.read_text()) - (int(match[1]) if match else 0)
        free = min(free, (int(text) - taken) // 2**20)
    return max(0, free)


def process_tree(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(one := todo.pop())
        todo += parents.get(one, [])
    return found


def host_mib_of(pid: int) -> int:
    """MiB of host memory that a process and all below it take; pages that they share count once."""
    total = 0
    for one in process_tree(pid):
        try:
            text = (PROC / str(one) / "smaps_rollup").read_text()
        except OSError:
            continue
        match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(match[1]) if match else 0
    return total // 1024


def nvidia_smi(*query: str) -> list[list[str]]:
    """Rows of an ``nvidia-smi`` query; none where it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    done = subprocess.run(
        [program, *query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return []
    return [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def free_device_mib(uuid: str) -> int | None:
    """MiB that are free on a GPU; ``None`` when nobody can tell (a MIG slice, no driver)."""
    for row in nvidia_smi("--query-gpu=uuid,memory.free"):
        if row[0] == uuid and row[1].isdigit():
            return int(row[1])
    return None


def device_mib_of(pid: int) -> int | None:
    """MiB of GPU memory that a process and all below it take; ``None`` when the driver names none of them."""
    tree = set(process_tree(pid))
    rows = [
        row for row in nvidia_smi("--query-compute-apps=pid,used_memory") if row[0].isdigit() and int(row[0]) in tree
    ]
    sizes = [int(row[1]) for row in rows if row[1].isdigit()]
    return sum(sizes) if sizes else None
