"""What a request costs its servers and the load client in processor time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CLIENT = "load client"


def processor_seconds(kinds: Mapping[int, str]) -> dict[str, float]:
    """Processor time that processes have had so far, by their kind; and the load clients that have ended.

    Args:
        kinds: process ids, and under which name each counts. Processes that have ended count nothing.
    """
    found = dict.fromkeys(kinds.values(), 0.0)
    for pid, kind in kinds.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # utime and stime of proc(5), all threads together.
        found[kind] += (int(fields[11]) + int(fields[12])) / TICKS
    times = os.times()
    return {**found, CLIENT: times.children_user + times.children_system}


def of_each(before: Mapping[str, float], after: Mapping[str, float], answers: int) -> dict[str, float]:
    """Microseconds for each answer, by kind of process."""
    return {kind: round((after[kind] - before[kind]) * 1e6 / max(1, answers), 1) for kind in after}
