"""Memory that a loaded model takes, as measured, and how much of it a batch may take."""

from __future__ import annotations

import ctypes
import gc
import logging
import re
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

#: Pools from which the C library gives memory to threads, most of which wait most of the time.
_POOLS = 2
#: ``M_ARENA_MAX`` of glibc's malloc.h.
_ARENA_MAX = -8

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def share_pools() -> None:
    """Have all threads of this process take memory from few pools; to be called before they are started.

    glibc gives each thread a pool of its own, up to eight for each core, and what a request took stays in the pool of
    its thread: a worker with many threads that take turns would grow for as long as there are pools left.
    """
    library = ctypes.CDLL(None)
    # Not every C library has it.
    if hasattr(library, "mallopt"):
        library.mallopt(_ARENA_MAX, _POOLS)


def free(torch_device: str) -> None:
    """Give back the memory of a device, or of the host, that nobody uses any more.

    Before another attempt with less, and at the end of a process: left to the interpreter's teardown, CUDA's own may
    run first, and the process ends in a crash.

    Args:
        torch_device: torch device string, such as ``"cuda:0"``.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch_device.startswith("cuda"):
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            # What is wrong shows again in the next call of the model, and is sorted there.
            _log.exception("device_not_freed")


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


#: Share of the free memory that a batch may take: the allocator rounds up, and other sizes choose other algorithms.
BATCH_SHARE = 0.8


class DeviceMeter:
    """What one computation takes of a CUDA device beyond the weights; on any other device it says nothing.

    Make it before the computation, and ask it after.

    Args:
        torch_device: torch device string, such as ``"cuda:0"``.
    """

    def __init__(self, torch_device: str) -> None:
        self._torch = sys.modules.get("torch") if torch_device.startswith("cuda") else None
        self._before = 0
        if self._torch is not None:
            self._torch.cuda.reset_peak_memory_stats()
            self._before = int(self._torch.cuda.memory_allocated())

    def taken_bytes(self) -> int:
        """Give the bytes that were allocated at the peak, beyond those of before."""
        return 0 if self._torch is None else int(self._torch.cuda.max_memory_allocated()) - self._before

    def free_bytes(self) -> int:
        """Give the bytes that a computation may take: free on the device, or reserved by torch and unused."""
        if self._torch is None:
            return 0
        cuda = self._torch.cuda
        return int(cuda.mem_get_info()[0]) + int(cuda.memory_reserved()) - int(cuda.memory_allocated())


def cost_that_fits(taken_bytes: int, cost: int, free_bytes: int) -> int | None:
    """Largest cost of a batch by what one input was measured to take.

    Activations of a network grow with its input, so bytes are taken for proportional to cost; what that misses shows
    when the device runs out of memory, and a smaller bound is remembered then.

    Args:
        taken_bytes: device memory that an input took while it was computed.
        cost: the cost of that input.
        free_bytes: device memory that there is.

    Returns:
        The cost, at least that of the input that was computed; None when nothing was measured.
    """
    if taken_bytes <= 0 or cost <= 0:
        return None
    return max(cost, int(free_bytes * BATCH_SHARE * cost / taken_bytes))
