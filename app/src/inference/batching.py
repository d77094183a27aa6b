"""What waits for the device, and what is computed together: policy alone, without threads, sockets or a model.

Nothing here waits. Time comes from a clock that is handed in, so that tests need none of their own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

#: Share that the newest batch has in the measured rate, by the time it took.
RATE_DECAY = 0.9
#: Seconds for which a lower cap holds after the device ran out of memory, before a larger batch is tried again. It
#: may have been a neighbour that had the memory, such as the release before, which has left since.
CAP_SECONDS = 600.0
#: Seconds until there is room when nothing has been measured yet.
UNKNOWN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of batches and of the queue.

    Attributes:
        max_items: most requests in a batch.
        max_cost: largest sum of costs in a batch; 0 = no bound.
        delay_seconds: time that the oldest request waits for company while the device is free.
        queue_items: requests that may wait beyond the batch being computed.
    """

    max_items: int = 32
    max_cost: int = 0
    delay_seconds: float = 0.0
    queue_items: int = 64


@dataclass(slots=True, eq=False)
class Work:
    """One request on its way through the device.

    Attributes:
        key: who asked, and which of the questions it is; nothing else has the same.
        item: what the model's ``decode`` gave.
        cost: what it takes of the device, in the model's unit.
        deadline: instant of the clock after which it is not computed any more.
        request_id: for the log.
        arrived: instant of the clock at which it was queued.
    """

    key: Hashable
    item: Any
    cost: int = 1
    deadline: float = math.inf
    request_id: str | None = None
    arrived: float = 0.0


class QueueFull(Exception):
    """There is no room for another request.

    Args:
        seconds: time until there is, as far as the measured rate can tell.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"full for {seconds:.3f} s")
        self.seconds = seconds


class Batching:
    """First in, first out; a batch is what waits when the device is free, within the limits.

    Args:
        limits: the bounds.
        clock: gives the time in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._waiting: OrderedDict[Hashable, Work] = OrderedDict()
        self._waiting_cost = 0
        self._computing_cost = 0
        self._computing_since: float | None = None
        # Sums of cost and seconds in which older batches fade: their quotient is the service rate.
        self._cost_sum = 0.0
        self._seconds_sum = 0.0
        self._cap: int | None = None
        self._cap_until = 0.0
        self._cap_seconds = CAP_SECONDS

    def __len__(self) -> int:
        """Give the number of requests that wait."""
        return len(self._waiting)

    @property
    def cap(self) -> int | None:
        """Largest cost of a batch since the device ran out of memory; None when it has not."""
        return self._cap

    @property
    def rate(self) -> float | None:
        """Measured cost per second of compute; None before the first batch."""
        return self._cost_sum / self._seconds_sum if self._seconds_sum > 0 else None

    def offer(self, work: Work) -> None:
        """Queue a request.

        Raises:
            QueueFull: as many wait as may.
        """
        # A free device takes a batch at once, so that one may wait for it as well.
        room = self._limits.queue_items + (self._limits.max_items if self._computing_since is None else 0)
        if len(self._waiting) >= room:
            raise QueueFull(self.seconds_until_room())
        work.arrived = self._clock()
        self._waiting[work.key] = work
        self._waiting_cost += work.cost

    def remove(self, key: Hashable) -> Work | None:
        """Take a request out of the queue; None when it does not wait (any more)."""
        work = self._waiting.pop(key, None)
        if work is not None:
            self._waiting_cost -= work.cost
        return work

    def clear(self) -> list[Work]:
        """Take out all that waits."""
        everything = list(self._waiting.values())
        self._waiting.clear()
        self._waiting_cost = 0
        return everything

    def seconds_until_batch(self) -> float | None:
        """Say when :meth:`take` should be called: 0 = now, None = not before something is offered."""
        if not self._waiting:
            return None
        if self._limits.delay_seconds <= 0 or len(self._waiting) >= self._limits.max_items:
            return 0.0
        bound = self._cost_bound()
        if bound is not None and self._waiting_cost >= bound:
            return 0.0
        oldest = next(iter(self._waiting.values()))
        # A deadline in the delay is no reason to miss it.
        return max(0.0, min(oldest.arrived + self._limits.delay_seconds, oldest.deadline) - self._clock())

    def take(self) -> tuple[list[Work], list[Work]]:
        """Take the next batch, and those before it that are past their deadline and must not be computed.

        Returns:
            The batch, in order of arrival; empty only when nothing is left that could be computed. And the late ones.
        """
        now = self._clock()
        bound = self._cost_bound()
        batch: list[Work] = []
        late: list[Work] = []
        cost = 0
        while self._waiting and len(batch) < self._limits.max_items:
            key, work = next(iter(self._waiting.items()))
            if now >= work.deadline:
                late.append(work)
            elif batch and bound is not None and cost + work.cost > bound:
                break
            else:
                batch.append(work)
                cost += work.cost
            del self._waiting[key]
            self._waiting_cost -= work.cost
        if batch:
            self._computing_cost = cost
            self._computing_since = now
        return batch, late

    def finished(self) -> None:
        """Note that the batch taken last is done, successfully or not."""
        if self._computing_since is None:
            return
        seconds = self._clock() - self._computing_since
        self._cost_sum = self._cost_sum * RATE_DECAY + self._computing_cost
        self._seconds_sum = self._seconds_sum * RATE_DECAY + seconds
        self._computing_since = None
        self._computing_cost = 0

    def ran_out_of_memory(self, cost: int) -> None:
        """Remember that a batch of this cost was too much for the device: from now on half of it is the most."""
        half = max(1, cost // 2)
        if self._cap is None or half < self._cap:
            self._cap = half
        # Each time that a larger batch fails again it is left alone for longer.
        if self._cap_until:
            self._cap_seconds *= 2
        self._cap_until = self._clock() + self._cap_seconds

    def seconds_until_room(self) -> float:
        """Estimate when the queue has room again: when the batch being computed ends, and the next one leaves it."""
        rate = self.rate
        if self._computing_since is None or rate is None or rate <= 0:
            return UNKNOWN_SECONDS
        return max(0.0, self._computing_since + self._computing_cost / rate - self._clock())

    def _cost_bound(self) -> int | None:
        if self._cap is not None and self._clock() >= self._cap_until:
            self._cap *= 2
            self._cap_until = self._clock() + self._cap_seconds
        bounds = [bound for bound in (self._limits.max_cost, self._cap) if bound]
        return min(bounds) if bounds else None
