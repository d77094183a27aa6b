"""The engine, driven step by step by the test: what it replies, and that it replies to each request exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from batch_doubles import FakeClock, Item, ScriptedModel, engine, work
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from inference.engine import Done, Engine, Healthy
from inference.errors import Busy, ClientLeft, ModelFailed, NotReady, OverTime, UnreadableInput
from inference.sampling import PATIENCE_SECONDS, RETRY_SECONDS

MAX_ITEMS = 4
MAX_COST = 8
QUEUE_ITEMS = 6


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the garbage of the test process alone: there is much of it, and each lack of memory would collect it."""
    monkeypatch.setattr("inference.memory.free", lambda device: None)


def replies(engine: Engine) -> dict[Hashable, Any]:
    return dict(engine.replies())


def test_requests_that_wait_are_computed_together(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    assert not one.step()
    assert [one.offer(work(number)) for number in range(3)] == [None] * 3

    def during(items: list[Item]) -> None:
        clock.now += 2.0

    model.during = during
    assert one.step()
    assert not one.step()
    assert replies(one) == {number: Done(f"answer {number}", 1000.0, 1002.0, 3) for number in range(3)}
    assert replies(one) == {}


def test_what_comes_while_a_batch_is_computed_is_the_next_batch(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    one.offer(work(0))
    model.during = lambda items: [one.offer(work(number)) for number in (1, 2)] if items[0].number == 0 else None
    one.step()
    one.step()
    assert model.calls == [[0], [1, 2]]


def test_full_queue_says_when_there_is_room(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock, max_items=1, queue_items=2)
    refused: list[Any] = []

    def during(items: list[Item]) -> None:
        # The first batch has taken 30 s; 10 s of the second are over.
        clock.now += 10.0
        if items[0].number == 1:
            refused.extend(one.offer(work(number)) for number in (3, 4, 5))
        clock.now += 20.0

    model.during = during
    for number in (0, 1):
        one.offer(work(number))
    one.step()
    one.offer(work(2))
    one.step()
    assert refused[0] is None
    assert isinstance(refused[1], Busy)
    assert refused[1].retry_after == 20
    assert (refused[1].full_until, refused[1].room_at) == (1050.0, 1060.0)
    assert isinstance(refused[2], Busy)
    assert one.counts()["refused"] == 2


def test_client_that_leaves_before_compute_is_not_computed(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    for number in range(3):
        one.offer(work(number))
    assert isinstance(one.cancel(1), ClientLeft)
    assert one.cancel(1) is None
    one.step()
    assert model.calls == [[0, 2]]
    assert set(replies(one)) == {0, 2}


def test_client_that_leaves_during_compute_is_answered_at_once_and_only_once(
    model: ScriptedModel, clock: FakeClock
) -> None:
    one = engine(model, clock)
    for number in range(2):
        one.offer(work(number))
    found: list[Any] = []
    model.during = lambda items: found.append(one.cancel(0))
    one.step()
    assert isinstance(found[0], ClientLeft)
    assert set(replies(one)) == {1}
    assert one.cancel(1) is None


def test_past_its_deadline_it_is_dropped_before_the_device(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    assert isinstance(one.offer(work(0, deadline=clock.now)), OverTime)
    one.offer(work(1, deadline=clock.now + 1))
    one.offer(work(2, deadline=clock.now + 1))
    one.offer(work(3))
    assert isinstance(one.expire(1), OverTime)
    clock.now += 1
    one.step()
    found = replies(one)
    assert model.calls == [[3]]
    assert isinstance(found[2], OverTime)
    assert one.counts()["late"] == 3


def test_deadline_during_compute_is_answered_all_the_same(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    one.offer(work(0, deadline=clock.now + 1))
    found: list[Any] = []
    model.during = lambda items: found.append(one.expire(0))
    one.step()
    assert found == [None]
    assert replies(one)[0].output == "answer 0"


def test_health_runs_the_sample_only_when_the_last_success_is_old(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    clock.now += 29
    found = one.ask_health("a")
    assert isinstance(found, Healthy)
    assert found.age == 29
    clock.now += 2
    assert one.ask_health("a") is None
    assert one.step()
    (key, reply), *_ = one.replies()
    assert (key, reply.age) == ("a", 0)
    assert isinstance(one.ask_health("a"), Healthy)


def test_busy_device_that_is_sound_stays_ready(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    one.offer(work(0))
    found: list[Any] = []

    def during(items: list[Item]) -> None:
        clock.now += 40
        assert one.ask_health("a") is None
        assert one.impatient() == []
        clock.now += PATIENCE_SECONDS
        found.extend(one.impatient())

    model.during = during
    one.step()
    assert found[0][0] == "a"
    assert found[0][1].age == 40 + PATIENCE_SECONDS
    assert not one.asking()


def test_after_a_failure_the_sample_runs_before_anything_else(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    one.offer(work(0, "poison"))
    one.step()
    assert isinstance(replies(one)[0], ModelFailed)
    model.sample_failure = RuntimeError("gone wrong")
    one.offer(work(1))
    one.step()
    assert isinstance(replies(one)[1], NotReady)
    assert isinstance(one.offer(work(2)), NotReady)
    assert isinstance(one.ask_health("a"), NotReady)
    assert not one.step(), "not again before a second is over"
    model.sample_failure = None
    clock.now += RETRY_SECONDS
    assert one.step()
    assert one.offer(work(3)) is None
    one.step()
    assert replies(one)[3].output == "answer 3"


def test_run_ends_when_the_sample_failed_twice(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock)
    model.sample_failure = RuntimeError("sticky")
    for number in range(2):
        one.offer(work(number, "poison"))
    one.step()
    clock.now += RETRY_SECONDS
    one.run()
    found = replies(one)
    assert set(found) == {0, 1}
    assert all(isinstance(reply, NotReady) for reply in found.values())
    assert isinstance(one.offer(work(3)), NotReady)


def test_run_ends_when_the_context_is_lost_and_answers_who_waits(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock, max_items=2)
    for number, kind in enumerate(["ok", "lost", "ok"]):
        one.offer(work(number, kind))
    one.run()
    found = replies(one)
    assert set(found) == {0, 1, 2}
    assert all(isinstance(reply, NotReady) for reply in found.values())
    assert model.calls == [[0, 1]]


def test_stop_computes_what_it_has_and_takes_nothing_more(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock, max_items=2, delay_seconds=60.0)
    for number in range(3):
        one.offer(work(number))
    one.stop()
    assert isinstance(one.offer(work(3)), NotReady)
    one.run()
    assert {key: reply.output for key, reply in one.replies()} == {n: f"answer {n}" for n in range(3)}


def test_a_thread_that_runs_is_woken_by_work_and_by_stop() -> None:
    model = ScriptedModel()
    import time

    came = threading.Event()
    one = engine(model, time.monotonic)
    one._on_reply = came.set
    thread = threading.Thread(target=one.run)
    thread.start()
    assert one.offer(work(0)) is None
    assert came.wait(10)
    assert replies(one)[0].output == "answer 0"
    one.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_out_of_memory_leaves_smaller_batches_behind(model: ScriptedModel, clock: FakeClock) -> None:
    one = engine(model, clock, max_items=8)
    model.capacity = 5
    for number in range(16):
        one.offer(work(number))
    while one.step():
        pass
    assert model.calls == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert len(replies(one)) == 16
    assert one.counts()["cost_cap"] == 4


class EveryRequestIsAnsweredOnce(RuleBasedStateMachine):
    """Any order of arrivals, cancellations, deadlines and failures, also while a batch is being computed."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model = ScriptedModel()
        self.model.during = self.during
        self.offered: dict[int, Item] = {}
        self.deadlines: dict[int, float] = {}
        self.answered: dict[int, Any] = {}
        self.seen: set[int] = set()
        self.waiting_actions: list[Callable[[], None]] = []
        self.asked: Counter[str] = Counter()
        self.health_answers: Counter[str] = Counter()

    @initialize(delay=st.sampled_from([0.0, 0.5]), capacity=st.sampled_from([3, 6, 1000]))
    def begin(self, delay: float, capacity: int) -> None:
        limits = {"max_items": MAX_ITEMS, "max_cost": MAX_COST, "queue_items": QUEUE_ITEMS, "delay_seconds": delay}
        self.model.capacity = capacity
        self.engine = engine(self.model, self.clock, **limits)

    # ---- what may happen at any time

    def offer(self, kind: str, cost: int, seconds: float) -> None:
        number = len(self.offered)
        self.offered[number] = Item(number, kind, cost)
        self.deadlines[number] = self.clock.now + seconds
        self.note(number, self.engine.offer(work(number, kind, cost, self.deadlines[number])))

    def drop(self, which: int, expire: bool) -> None:
        if self.offered:
            number = which % len(self.offered)
            # Asked for what is answered already too: the two cross on the way.
            self.note(number, self.engine.expire(number) if expire else self.engine.cancel(number))

    def ask(self) -> None:
        key = f"health {sum(self.asked.values())}"
        self.asked[key] += 1
        self.note(key, self.engine.ask_health(key))

    def note(self, key: Any, reply: Any) -> None:
        if reply is None:
            return
        if isinstance(key, str):
            self.health_answers[key] += 1
            assert isinstance(reply, Healthy | NotReady)
            return
        assert key not in self.answered, f"{key} was answered with {self.answered[key]!r} and then {reply!r}"
        self.answered[key] = reply

    def during(self, items: list[Item]) -> None:
        for item in items:
            if item.number not in self.seen:
                self.seen.add(item.number)
                assert self.clock.now < self.deadlines[item.number], "computed past its deadline"
                assert item.number not in self.answered, "computed although nobody waits for it"
        assert len(items) <= MAX_ITEMS
        assert len(items) == 1 or sum(item.cost for item in items) <= MAX_COST
        actions, self.waiting_actions = self.waiting_actions, []
        for action in actions:
            action()

    # ---- rules: each happens at once, or in the middle of the next call of the model

    def do(self, later: bool, action: Callable[[], None]) -> None:
        if later:
            self.waiting_actions.append(action)
        else:
            action()

    @rule(
        later=st.booleans(),
        kind=st.sampled_from(["ok"] * 6 + ["poison", "blame", "placed", "placed-blame"]),
        cost=st.sampled_from([1, 1, 2, 5, 20]),
        seconds=st.sampled_from([0.0, 1.0, 100.0]),
    )
    def arrives(self, later: bool, kind: str, cost: int, seconds: float) -> None:
        self.do(later, lambda: self.offer(kind, cost, seconds))

    @rule(later=st.booleans(), which=st.integers(0, 50), expire=st.booleans())
    def leaves(self, later: bool, which: int, expire: bool) -> None:
        self.do(later, lambda: self.drop(which, expire))

    @rule(later=st.booleans())
    def asks_health(self, later: bool) -> None:
        self.do(later, self.ask)

    @rule(later=st.booleans(), seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def time_goes_on(self, later: bool, seconds: float) -> None:
        def go() -> None:
            self.clock.now += seconds

        self.do(later, go)

    @rule(fails=st.booleans())
    def sample_changes(self, fails: bool) -> None:
        self.model.sample_failure = RuntimeError("sticky") if fails else None

    @rule()
    def computes(self) -> None:
        self.engine.step()

    @rule()
    def collects(self) -> None:
        for key, reply in [*self.engine.replies(), *self.engine.impatient()]:
            self.note(key, reply)

    @invariant()
    def answers_are_their_own(self) -> None:
        for number, reply in self.answered.items():
            kind = self.offered[number].kind
            if isinstance(reply, Done):
                assert reply.output == f"answer {number}"
                assert kind == "ok"
                assert 1 <= reply.batch <= MAX_ITEMS
            elif isinstance(reply, ModelFailed):
                too_large = self.offered[number].cost > self.model.capacity
                assert kind in ("poison", "placed") or too_large
            elif isinstance(reply, UnreadableInput):
                assert kind in ("blame", "placed-blame")
            else:
                assert isinstance(reply, Busy | ClientLeft | OverTime | NotReady)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # What was to happen during a call that never came happens now.
        actions, self.waiting_actions = self.waiting_actions, []
        for action in actions:
            action()
        self.engine.stop()
        while self.engine.step():
            self.clock.now += RETRY_SECONDS
        self.clock.now += RETRY_SECONDS
        self.engine.run()
        self.collects()
        assert set(self.answered) == set(self.offered)
        assert self.health_answers == self.asked
        self.answers_are_their_own()


TestEveryRequestIsAnsweredOnce = EveryRequestIsAnsweredOnce.TestCase
TestEveryRequestIsAnsweredOnce.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
