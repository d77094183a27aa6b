"""End a process whose model hangs.

uWSGI's harakiri has one timer for each process, which every other thread's request resets, so it is
right only with one thread. This watchdog times each call of the model by itself. It needs the
interpreter lock: a call that hangs without ever releasing it is only ended by harakiri.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from inference import logs

#: Exit status of a process ended by the watchdog; uWSGI gives no meaning of its own to it.
EXIT_STUCK = 86

#: When a call began, and the requests that it is for.
Call = tuple[float, str | Sequence[str | None] | None]

_log = logging.getLogger(__name__)


def end_process(status: int = EXIT_STUCK) -> None:
    """End this process at once, without teardown, which could hang as the model does."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(status)


class _Watched:
    """A block that is watched; a class, because a generator takes three times as long, twice in each request."""

    __slots__ = ("_calls", "_ident", "_requests")

    def __init__(self, calls: dict[int, Call], requests: str | Sequence[str | None] | None) -> None:
        self._calls = calls
        self._requests = requests
        self._ident = threading.get_ident()

    def __enter__(self) -> None:
        self._calls[self._ident] = (time.monotonic(), self._requests)

    def __exit__(self, *_: object) -> None:
        self._calls.pop(self._ident, None)


class Watchdog:
    """Watch calls from one background thread, which starts with the first call.

    Args:
        limit_seconds: a call that runs longer ends the process.
        on_stuck: what to do then; tests replace it.
    """

    def __init__(self, limit_seconds: float, on_stuck: Callable[[], None] = end_process) -> None:
        self._limit = limit_seconds
        self._on_stuck = on_stuck
        self._calls: dict[int, Call] = {}
        self._started = threading.Lock()
        # Polling costs one wake-up a second at most and keeps the request's path free of signalling.
        self._period = min(1.0, limit_seconds / 10)

    def watching(self, request_ids: Sequence[str | None] | None = None) -> _Watched:
        """Watch the calling thread until the block ends.

        Args:
            request_ids: the requests computed together; the one that the thread works on when not given.
        """
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return _Watched(self._calls, logs.request_id.get() if request_ids is None else request_ids)

    def _run(self) -> None:
        while True:
            time.sleep(self._period)
            now = time.monotonic()
            # list(): requests come and go on other threads while this one looks.
            for ident, (began, requests) in list(self._calls.items()):
                if now - began > self._limit:
                    self._report(ident, now - began, requests)
                    self._on_stuck()
                    return

    def _report(self, ident: int, seconds: float, requests: str | Sequence[str | None] | None) -> None:
        frame = sys._current_frames().get(ident)
        facts = {
            "request_id" if requests is None or isinstance(requests, str) else "request_ids": requests,
            "seconds": round(seconds, 3),
            "limit_seconds": self._limit,
            "exit_status": EXIT_STUCK,
            "stack": "".join(traceback.format_stack(frame)) if frame else None,
        }
        _log.critical("model_stuck", extra={"facts": facts})
