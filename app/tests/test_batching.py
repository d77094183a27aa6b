"""The policy of batches and queue, on a clock that the test moves."""

from __future__ import annotations

import pytest
from batch_doubles import FakeClock, work
from inference.batching import CAP_SECONDS, UNKNOWN_SECONDS, Batching, Limits, QueueFull, Work


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def numbers(works: list[Work]) -> list[object]:
    return [one.key for one in works]


def filled(clock: FakeClock, costs: list[int], **limits: float) -> Batching:
    """Make a queue in which requests 0, 1, ... of these costs wait."""
    queue = Batching(Limits(**limits), clock)  # type: ignore[arg-type]
    for number, cost in enumerate(costs):
        queue.offer(work(number, cost=cost))
    return queue


def test_a_batch_is_what_waits_in_order_of_arrival(clock: FakeClock) -> None:
    queue = filled(clock, [1, 1, 1])
    batch, late = queue.take()
    assert (numbers(batch), late, len(queue)) == ([0, 1, 2], [], 0)


def test_a_batch_has_at_most_max_items(clock: FakeClock) -> None:
    queue = filled(clock, [1] * 7, max_items=3)
    assert [numbers(queue.take()[0]) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("costs", "batches"),
    [
        ([4, 4, 4], [[0, 1], [2]]),
        ([10, 1, 1], [[0], [1, 2]]),
        ([99, 1], [[0], [1]]),
        ([1, 99, 1], [[0], [1], [2]]),
        ([5, 5, 1], [[0, 1], [2]]),
    ],
)
def test_a_batch_is_bounded_by_cost_and_one_over_it_goes_alone(
    clock: FakeClock, costs: list[int], batches: list[list[int]]
) -> None:
    queue = filled(clock, costs, max_cost=10)
    assert [numbers(queue.take()[0]) for _ in batches] == batches
    assert len(queue) == 0


def test_without_a_delay_the_first_one_starts_at_once(clock: FakeClock) -> None:
    queue = Batching(Limits(), clock)
    assert queue.seconds_until_batch() is None
    queue.offer(work(1))
    assert queue.seconds_until_batch() == 0


def test_the_delay_ends_when_it_is_over_or_the_batch_is_full_or_a_deadline_comes(clock: FakeClock) -> None:
    queue = Batching(Limits(max_items=3, max_cost=10, delay_seconds=0.5), clock)
    queue.offer(work(1))
    assert queue.seconds_until_batch() == pytest.approx(0.5)
    clock.now += 0.4
    queue.offer(work(2))
    assert queue.seconds_until_batch() == pytest.approx(0.1)
    clock.now += 0.2
    assert queue.seconds_until_batch() == 0
    queue.take()
    queue.offer(work(3, cost=10))
    assert queue.seconds_until_batch() == 0
    queue.take()
    for number in (4, 5, 6):
        queue.offer(work(number))
    assert queue.seconds_until_batch() == 0
    queue.take()
    queue.offer(work(7, deadline=clock.now + 0.2))
    assert queue.seconds_until_batch() == pytest.approx(0.2)


def test_what_is_past_its_deadline_is_not_in_a_batch(clock: FakeClock) -> None:
    queue = Batching(Limits(max_items=2), clock)
    for number, deadline in enumerate([1001.0, 2000.0, 1001.0, 2000.0]):
        queue.offer(work(number, deadline=deadline))
    clock.now = 1001.0
    batch, late = queue.take()
    assert (numbers(batch), numbers(late)) == ([1, 3], [0, 2])
    assert queue.take() == ([], [])


def test_what_was_removed_is_in_no_batch_and_makes_room(clock: FakeClock) -> None:
    queue = filled(clock, [6, 6, 4], max_items=1, max_cost=10, queue_items=2)
    with pytest.raises(QueueFull):
        queue.offer(work(9))
    assert queue.remove(1) is not None
    assert queue.remove(1) is None
    queue.offer(work(9))
    assert [numbers(queue.take()[0]) for _ in range(3)] == [[0], [2], [9]]


def test_the_queue_has_room_for_a_batch_more_while_the_device_is_free(clock: FakeClock) -> None:
    queue = Batching(Limits(max_items=2, queue_items=3), clock)
    for number in range(5):
        queue.offer(work(number))
    with pytest.raises(QueueFull):
        queue.offer(work(5))
    queue.take()
    with pytest.raises(QueueFull):
        queue.offer(work(5))
    queue.finished()
    queue.take()
    queue.offer(work(5))


def test_time_until_room_is_what_the_batch_will_still_take_at_the_measured_rate(clock: FakeClock) -> None:
    queue = filled(clock, [5, 5, 5, 5], max_items=2)
    assert queue.seconds_until_room() == UNKNOWN_SECONDS
    queue.take()
    clock.now += 4.0
    queue.finished()
    assert queue.rate == pytest.approx(2.5)
    queue.take()
    clock.now += 1.0
    assert queue.seconds_until_room() == pytest.approx(3.0)
    clock.now += 60.0
    assert queue.seconds_until_room() == 0.0


def test_the_rate_follows_what_is_measured(clock: FakeClock) -> None:
    queue = Batching(Limits(), clock)
    for seconds, batches in ((1.0, 5), (0.1, 60)):
        for number in range(batches):
            queue.offer(work(number))
            queue.take()
            clock.now += seconds
            queue.finished()
    assert queue.rate == pytest.approx(10.0, rel=0.05)


def test_out_of_memory_halves_the_batch_and_it_is_remembered(clock: FakeClock) -> None:
    queue = filled(clock, [1] * 12, max_items=8)
    batch, _ = queue.take()
    queue.ran_out_of_memory(len(batch))
    queue.finished()
    assert queue.cap == 4
    for number in range(20, 24):
        queue.offer(work(number))
    assert len(queue.take()[0]) == 4
    queue.ran_out_of_memory(4)
    queue.ran_out_of_memory(1)
    assert queue.cap == 1
    assert len(queue.take()[0]) == 1


def test_after_a_while_a_larger_batch_is_tried_again_and_then_later(clock: FakeClock) -> None:
    queue = filled(clock, [1] * 40, max_items=8, queue_items=64)
    queue.ran_out_of_memory(8)
    clock.now += CAP_SECONDS - 1
    assert len(queue.take()[0]) == 4
    clock.now += 1
    assert len(queue.take()[0]) == 8
    queue.ran_out_of_memory(8)
    clock.now += CAP_SECONDS
    assert len(queue.take()[0]) == 4
    clock.now += CAP_SECONDS
    assert len(queue.take()[0]) == 8
