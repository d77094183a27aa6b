"""When the prober of an edge takes a host out and lets it in again: by a clock of the test, then with real sockets."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fleet_prober
import processes
import pytest
from fleet_prober import Policy, Settings


class Host:
    """A policy with a clock, and answers every half second."""

    def __init__(self, **settings: Any) -> None:
        self.policy = Policy(Settings(**settings))
        self.now = 1000.0

    def answers(self, seconds: float, alive: bool = True, ready: bool | None = True) -> None:
        """Give answers for a while; ``ready`` None is a device that does not come to it."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += 0.5
            self.policy.alive_answer(alive, "dead", self.now)
            if ready is not None:
                self.policy.ready_answer(ready, "broken", self.now)

    def back_after(self) -> float:
        """Seconds of good answers until it is in again."""
        began = self.now
        while not self.policy.healthy:
            self.answers(0.5)
            assert self.now - began < 200
        return self.now - began


def test_a_new_host_is_in() -> None:
    assert Host().policy.healthy


def test_one_missing_answer_is_not_enough_and_two_are() -> None:
    host = Host()
    host.answers(0.5, alive=False)
    assert host.policy.healthy
    host.answers(0.5)
    host.answers(0.5, alive=False)
    assert host.policy.healthy, "they have to follow each other"
    host.answers(0.5, alive=False)
    assert (host.policy.healthy, host.policy.reason) == (False, "dead")


@pytest.mark.parametrize("fall", [1, 3])
def test_how_many_is_a_setting(fall: int) -> None:
    host = Host(fall=fall)
    host.answers((fall - 1) / 2, alive=False)
    assert host.policy.healthy
    host.answers(0.5, alive=False)
    assert not host.policy.healthy


def test_a_busy_host_stays_however_long_it_takes() -> None:
    host = Host()
    host.answers(300, ready=None)
    assert host.policy.healthy


def test_two_refusals_of_a_device_take_it_out() -> None:
    host = Host()
    host.answers(0.5, ready=False)
    assert host.policy.healthy
    host.answers(0.5, ready=False)
    assert (host.policy.healthy, host.policy.reason) == (False, "broken")


def test_no_answer_of_a_device_in_longer_than_a_request_may_take_is_enough_once() -> None:
    host = Host()
    assert host.policy.ready_answer(False, "late", host.now, late=True)
    assert not host.policy.healthy


def test_it_is_out_for_the_first_reason() -> None:
    host = Host()
    host.answers(1, alive=False, ready=None)
    host.answers(5, ready=False)
    assert host.policy.reason == "dead", "else the file of verdicts would change with every answer"


def test_it_comes_back_after_good_answers_of_both_kinds() -> None:
    host = Host()
    host.answers(2, alive=False, ready=None)
    host.answers(60, ready=None)
    assert not host.policy.healthy, "its devices have not said anything"
    host.answers(0.5)
    assert not host.policy.healthy
    host.answers(0.5)
    assert (host.policy.healthy, host.policy.reason) == (True, "answers again")


def test_a_bad_answer_in_between_begins_anew() -> None:
    host = Host(rise=5)
    host.answers(1, alive=False)
    host.answers(1.5)
    host.answers(0.5, ready=False)
    host.answers(2)
    assert not host.policy.healthy
    host.answers(0.5)
    assert host.policy.healthy


def test_flapping_is_bounded() -> None:
    """The time that it has to be good doubles with each ejection, up to a minute."""
    host, times = Host(), []
    for _ in range(9):
        host.answers(1, alive=False)
        assert not host.policy.healthy
        times.append(host.back_after())
    assert times == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_ten_quiet_minutes_are_forgotten() -> None:
    host = Host()
    for _ in range(4):
        host.answers(1, alive=False)
        host.back_after()
    host.answers(601)
    host.answers(1, alive=False)
    assert host.back_after() == 1


def test_what_happens_to_a_drained_host_does_not_count_as_flapping() -> None:
    host = Host()
    host.policy.drained = True
    for _ in range(5):
        host.answers(5, alive=False)
        assert not host.policy.healthy
        assert host.back_after() == 1


def test_a_late_answer_to_an_earlier_question_is_not_counted() -> None:
    policy = Policy(Settings())
    policy.alive_answer(True, "", 1000.6, began=1000.5)
    assert not policy.alive_answer(False, "late", 1001.0, began=1000.0)
    assert policy.alive.bad == 0


# ---- with real sockets


class FakeHost:
    """An nginx of a host, and its device."""

    def __init__(self) -> None:
        fake = self
        self.ready = 200
        self.alive = 200
        self.hold = threading.Event()
        self.hold.set()
        self.seen: list[str] = []
        self.port = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.seen.append(self.path)
                if self.path == "/readyz":
                    fake.hold.wait(30)
                self.send_response(fake.ready if self.path == "/readyz" else fake.alive)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.handler = Handler
        self.start()

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Probed:
    """A prober over the files of an edge, in a thread of its own."""

    def __init__(self, folder: Path, hosts: dict[str, FakeHost]) -> None:
        self.folder = folder
        self.hosts = hosts
        self.settings = folder / "edge.json"
        self.probes = folder / "probes.json"
        self.configure()
        self.join(*hosts)
        self.loop = asyncio.new_event_loop()
        self.prober = fleet_prober.Prober(self.settings)
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.task = self.loop.create_task(self.prober.run())
        try:
            self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            left = list(self.prober.tasks)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()

    def configure(self, **more: Any) -> None:
        places = {"state_dir": str(self.folder), "probes_file": str(self.probes)}
        settings = {"probe_seconds": 0.05, "alive_seconds": 0.5, "ready_seconds": 20, "balance": "ip_hash"}
        self.settings.write_text(json.dumps({**places, **settings, **more}))

    def join(self, *names: str, drained: Any = None) -> None:
        members = {
            name: {"address": "127.0.0.1", "weight": 1, "services": {"ocr": self.hosts[name].port}, "drained": drained}
            for name in names
        }
        partial = self.folder / "members.partial"
        partial.write_text(json.dumps({"members": members}))
        partial.rename(self.folder / "members.json")

    def verdicts(self) -> dict[str, bool]:
        if not self.probes.is_file():
            return {}
        return {name: one["healthy"] for name, one in json.loads(self.probes.read_text())["members"].items()}

    def expect(self, **verdicts: bool) -> float:
        """Wait for these verdicts; gives the seconds that took."""
        began = time.monotonic()
        processes.wait_for(lambda: self.verdicts() == verdicts, lambda: f"{verdicts}: {self.verdicts()}")
        return time.monotonic() - began

    def never(self, seconds: float, **verdicts: bool) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.verdicts() == verdicts
            time.sleep(0.02)


@pytest.fixture
def probed(tmp_path: Path) -> Iterator[Probed]:
    hosts = {"one": FakeHost(), "two": FakeHost()}
    made = Probed(tmp_path, hosts)
    made.thread.start()
    made.expect(one=True, two=True)
    yield made
    for host in hosts.values():
        host.hold.set()
        host.stop()
    made.loop.call_soon_threadsafe(made.task.cancel)
    made.thread.join(10)
    assert not made.thread.is_alive()


def test_a_dead_host_is_out_and_comes_back(probed: Probed) -> None:
    probed.hosts["one"].stop()
    assert probed.expect(one=False, two=True) < 2
    reason = json.loads(probed.probes.read_text())["members"]["one"]["reason"]
    assert "refused" in reason or "Connect call failed" in reason
    probed.hosts["one"].start()
    assert 0.9 < probed.expect(one=True, two=True) < 5


def test_a_busy_host_is_asked_one_thing_at_a_time_and_stays(probed: Probed) -> None:
    host = probed.hosts["one"]
    host.hold.clear()
    time.sleep(0.2)
    host.seen.clear()
    probed.never(1.5, one=True, two=True)
    assert host.seen.count("/readyz") == 0, "the one from before has not been answered"
    assert host.seen.count("/.fleet/alive") > 10
    host.hold.set()
    processes.wait_for(lambda: host.seen.count("/readyz") > 2, "more questions")


def test_a_host_that_says_no_is_out(probed: Probed) -> None:
    probed.hosts["two"].ready = 503
    assert probed.expect(one=True, two=False) < 2
    probed.hosts["two"].ready = 200
    probed.expect(one=True, two=True)


def test_a_host_from_before_it_had_that_route_is_alive(probed: Probed) -> None:
    probed.hosts["one"].alive = 404
    probed.hosts["one"].ready = 429
    probed.never(0.5, one=True, two=True)


def test_verdicts_are_written_only_when_they_change(probed: Probed) -> None:
    (probed.folder / "applied.json").write_text(json.dumps({"healthy": {"one": True, "two": True}}))
    processes.wait_for(lambda: "not asked yet" not in probed.probes.read_text(), "the first answers")
    before = probed.probes.stat()
    time.sleep(0.5)
    assert (probed.probes.stat().st_ino, probed.probes.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_verdicts_that_nobody_heeds_are_written_again(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_prober, "HEEDED_SECONDS", 0.2)
    before = probed.probes.stat().st_ino
    processes.wait_for(lambda: probed.probes.stat().st_ino != before, "them to be written again")


def test_members_come_and_go_while_it_runs(probed: Probed) -> None:
    probed.join("two")
    probed.expect(two=True)
    probed.join("one", "two", drained={"by": "me", "since": "today", "why": ""})
    probed.expect(one=True, two=True)
    assert probed.prober.targets["one"].policy.drained


def test_settings_are_taken_over_while_it_runs(probed: Probed) -> None:
    probed.configure(fall=1_000_000)
    processes.wait_for(lambda: probed.prober.settings.fall == 1_000_000, "the new settings")
    probed.hosts["one"].ready = 500
    probed.never(0.5, one=True, two=True)


def test_a_restart_lets_no_host_in_that_was_out(probed: Probed) -> None:
    probed.hosts["one"].stop()
    probed.expect(one=False, two=True)
    after = fleet_prober.Prober(probed.settings)
    after.refresh()
    assert {name: one.policy.healthy for name, one in after.targets.items()} == {"one": False, "two": True}
    probed.hosts["one"].start()
