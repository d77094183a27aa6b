"""Memory that a loaded model takes, as measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def measured(torch_device: str) -> dict[str, int]:
    """Give ``host_bytes`` and, on a CUDA device, ``device_bytes``: what this process takes at its peak so far.

    The host's is the proportional set size (pages shared with others are divided among them); the device's is what
    torch has reserved, without the CUDA context, whose size only the driver knows.
    """
    facts = {}
    try:
        match = _PSS.search(Path("/proc/self/smaps_rollup").read_text())
    except OSError:
        # A hardened kernel may hide it.
        match = None
    if match:
        facts["host_bytes"] = int(match[1]) * 1024
    torch = sys.modules.get("torch")
    if torch is not None and torch_device.startswith("cuda"):
        facts["device_bytes"] = int(torch.cuda.max_memory_reserved())
    return facts
