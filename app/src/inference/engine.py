"""The heart of mode batch: requests come in on one side, and one thread computes them in batches on the other.

Two threads meet here. The one that talks to the web workers calls :meth:`Engine.offer`, :meth:`Engine.cancel`,
:meth:`Engine.expire` and :meth:`Engine.ask_health`, none of which ever waits, and collects what :meth:`Engine.replies`
has for it. The other one is in :meth:`Engine.run`. For each request there is exactly one reply: either what the
first thread's own call gives back, or one of :meth:`Engine.replies`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

from inference.batching import Batching, Limits, QueueFull, Work
from inference.computing import Computer
from inference.deadline import over_time
from inference.errors import Busy, ClientLeft, NotReady, Problem
from inference.sampling import PATIENCE_SECONDS, RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Done:
    """An output, when its batch was computed (instants of the clock), and how many requests were in it."""

    output: Any
    started: float
    ended: float
    batch: int


@dataclass(frozen=True, slots=True)
class Healthy:
    """When the sample last gave the known answer: seconds since the epoch, and seconds since then."""

    last_success: float
    age: float


Reply = Done | Healthy | Exception


@dataclass(slots=True)
class Counts:
    """What has happened since the last look."""

    batches: int = 0
    computed: int = 0
    largest_batch: int = 0
    busy_seconds: float = 0.0
    refused: int = 0
    late: int = 0
    left: int = 0


class Engine:
    """Queue, device and replies.

    Args:
        computer: the model on its device, loaded.
        limits: of batches and queue.
        ready_seconds: age after which a success of the sample is not trusted any more.
        clock: gives the time in seconds.
        on_reply: called, on the computing thread, when :meth:`replies` has something.
        on_batch: called, on that thread, with the number of requests that were computed together.
    """

    def __init__(
        self,
        computer: Computer,
        limits: Limits,
        ready_seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_reply: Callable[[], None] = lambda: None,
        on_batch: Callable[[float], None] = lambda items: None,
    ) -> None:
        self._computer = computer
        self._queue = Batching(limits, clock)
        self._limits = limits
        self._ready_seconds = ready_seconds
        self._clock = clock
        self._on_reply = on_reply
        self._on_batch = on_batch
        # Guards everything below, and wakes the computing thread.
        self._turn = threading.Condition()
        self._computing: dict[Hashable, Work] = {}
        self._replies: deque[tuple[Hashable, Reply]] = deque()
        self._asking: dict[Hashable, float] = {}
        self._retry_at = -math.inf
        self._refusing = False
        self._stopping = False
        self._counts = Counts()
        computer.on_out_of_memory = self._ran_out_of_memory

    # ---- the side of the web workers -------------------------------------------------------------------------------

    def offer(self, work: Work) -> Problem | None:
        """Queue a request, or say at once why not."""
        with self._turn:
            if self._stopping or self._refusing:
                return self._not_ready()
            if self._clock() >= work.deadline:
                self._counts.late += 1
                return over_time()
            try:
                self._queue.offer(work)
            except QueueFull as full:
                self._counts.refused += 1
                busy = Busy(
                    f"{len(self._queue)} requests wait for this device already.",
                    retry_after=max(1, math.ceil(full.seconds)),
                )
                now = self._clock()
                busy.room_at = now + full.seconds
                # Only half of it, as the rate may have been measured with smaller, slower batches.
                busy.full_until = now + full.seconds / 2
                return busy
            self._turn.notify()
            return None

    def cancel(self, key: Hashable) -> Problem | None:
        """Drop a request whose client has left; None when its reply is on its way already."""
        with self._turn:
            self._asking.pop(key, None)
            # What is being computed goes on for the others of its batch, and its output is thrown away.
            if self._queue.remove(key) is None and self._computing.pop(key, None) is None:
                return None
            self._counts.left += 1
            return ClientLeft()

    def expire(self, key: Hashable) -> Problem | None:
        """Drop a request that is past its deadline; None when it is computed already, and will be answered."""
        with self._turn:
            if self._queue.remove(key) is None:
                return None
            self._counts.late += 1
            return over_time()

    def ask_health(self, key: Hashable) -> Reply | None:
        """Say whether the sample worked not long ago; None when it has to run first, and the reply comes later."""
        with self._turn:
            if self._stopping or self._refusing:
                return self._not_ready()
            if self._is_fresh():
                return self._healthy()
            self._asking[key] = self._clock()
            self._turn.notify()
            return None

    def impatient(self) -> list[tuple[Hashable, Reply]]:
        """Answer questions for health that have waited for long: a sound device that is busy stays ready."""
        with self._turn:
            if not self._asking or not self._computer.sound:
                return []
            now = self._clock()
            keys = [key for key, since in self._asking.items() if now - since >= PATIENCE_SECONDS]
            for key in keys:
                del self._asking[key]
            return [(key, self._healthy()) for key in keys]

    def waiting(self) -> int:
        """Tell how many requests wait for the device."""
        return len(self._queue)

    def asking(self) -> bool:
        """Tell whether a question for health waits."""
        return bool(self._asking)

    def replies(self) -> list[tuple[Hashable, Reply]]:
        """Take the replies that have come about since the last call."""
        with self._turn:
            found = list(self._replies)
            self._replies.clear()
            return found

    def stop(self) -> None:
        """Take no more requests; :meth:`run` returns when those that it has are done."""
        with self._turn:
            self._stopping = True
            self._turn.notify()

    def counts(self) -> dict[str, Any]:
        """Take the counts since the last call, and how things stand."""
        with self._turn:
            facts = asdict(self._counts)
            self._counts = Counts()
            rate = self._queue.rate
            return {
                **facts,
                "busy_seconds": round(facts["busy_seconds"], 3),
                "waiting": len(self._queue),
                "cost_cap": self._queue.cap,
                "cost_per_second": None if rate is None else round(rate, 3),
            }

    # ---- the side of the device ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Compute until told to stop, or until the device is broken."""
        with self._turn:
            self._queue.bound_by_memory(self._computer.facts.get("cost_bound"))
        while True:
            with self._turn:
                while (batch := self._next()) is None:
                    if self._computer.broken or (self._stopping and not len(self._queue)):
                        return
                    self._turn.wait(self._pause())
            self._do(batch)
            # What was in it must not stay in memory until the next one comes.
            batch = None

    def step(self) -> bool:
        """Do what :meth:`run` would do next, once; False when there is nothing to do just now."""
        with self._turn:
            batch = self._next()
        if batch is None:
            return False
        self._do(batch)
        return True

    def _next(self) -> list[Work] | None:
        """Give the batch to compute now, an empty one for the sample, or None."""
        if self._computer.broken:
            return None
        now = self._clock()
        if self._computer.sound:
            if self._asking and not self._is_fresh():
                return []
        elif now >= self._retry_at:
            return []
        else:
            return None
        pause = self._queue.seconds_until_batch()
        if pause is None or (pause > 0 and not self._stopping):
            return None
        batch, late = self._queue.take()
        if late:
            self._counts.late += len(late)
            self._replies.extend((work.key, over_time()) for work in late)
            self._on_reply()
        self._computing = {work.key: work for work in batch}
        return batch or None

    def _pause(self) -> float | None:
        if not self._computer.sound:
            return max(0.0, self._retry_at - self._clock())
        return self._queue.seconds_until_batch()

    def _do(self, batch: list[Work]) -> None:
        if batch:
            self._compute(batch)
        else:
            self._check()
        self._on_reply()

    def _compute(self, batch: list[Work]) -> None:
        started = self._clock()
        outcomes = self._computer.compute(batch)
        ended = self._clock()
        self._on_batch(len(batch))
        with self._turn:
            self._queue.finished()
            counts = self._counts
            counts.batches += 1
            counts.computed += len(batch)
            counts.largest_batch = max(counts.largest_batch, len(batch))
            counts.busy_seconds += ended - started
            for work, outcome in zip(batch, outcomes, strict=True):
                # Those that were cancelled meanwhile have their reply.
                if self._computing.pop(work.key, None) is not None:
                    if isinstance(outcome, NotReady):
                        outcome = self._not_ready()
                    failed = isinstance(outcome, Exception)
                    reply = outcome if failed else Done(outcome, started, ended, len(batch))
                    self._replies.append((work.key, reply))
            if self._computer.failures:
                self._refuse()

    def _check(self) -> None:
        works = self._computer.check()
        with self._turn:
            if works:
                self._refusing = False
                self._retry_at = -math.inf
                self._replies.extend((key, self._healthy()) for key in self._asking)
                self._asking.clear()
            else:
                self._refuse()

    def _refuse(self) -> None:
        """Answer all that waits: the sample has failed, or the device is lost. The sample runs again in a while."""
        self._refusing = True
        self._retry_at = self._clock() + RETRY_SECONDS
        keys = [work.key for work in self._queue.clear()] + list(self._asking)
        self._asking.clear()
        self._replies.extend((key, self._not_ready()) for key in keys)

    def _is_fresh(self) -> bool:
        return self._computer.sound and self._clock() - self._computer.success <= self._ready_seconds

    def _healthy(self) -> Healthy:
        return Healthy(self._computer.success_wall, self._clock() - self._computer.success)

    def _not_ready(self) -> NotReady:
        if self._stopping:
            return NotReady("The model process is stopping.", retry_after=1)
        # At best it is ready again after a new process has loaded the model.
        seconds = max(1, math.ceil(self._computer.facts.get("load_seconds", 1)))
        return NotReady(
            "The inference with a known answer failed on this device; the log says why.", retry_after=seconds
        )

    def _ran_out_of_memory(self, cost: int) -> None:
        with self._turn:
            self._queue.ran_out_of_memory(cost)
