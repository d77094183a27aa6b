"""Vassals of a real emperor, brought up, retired and taken back by the real module."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ansible_modules
import fleet_socket
import processes
import pytest
from processes import wait_for
from stack import CPU, Fleet, Json

TINY = Path(__file__).parent / "data" / "tiny"
ONE = [{"name": "one", **CPU}]
SAMPLE = {"text": "hello", "content_type": "text/plain", "expect": {"answer": "42", "bytes": 5}}
SERVICE = {
    "name": "tiny",
    "route": "/tell",
    "wsgi_file": "app/tiny.py",
    "ready_path": "/ready",
    "workers": 2,
    "listen": 64,
    "load_seconds": 20,
    "sample": SAMPLE,
}


class Host:
    """A fleet with a running emperor, and the module over it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def wanted(self, release: str, **options: Any) -> list[Json]:
        """The vassals of a release; it is laid when it is not there."""
        folder = self.fleet.folder / "releases" / release
        if not folder.exists():
            self.fleet.release(release, TINY, Path(sys.prefix))
        return self.fleet.vassals([{**SERVICE, **options}], {"id": release, "dir": str(folder), "environment": ""}, ONE)

    def arguments(self, state: str, vassals: list[Json], **more: Any) -> Json:
        folders = {name: str(getattr(self.fleet, name)) for name in ("devices_dir", "run_dir", "log_dir")}
        return {"state": state, "vassals": vassals, "stop_seconds": 20, **folders, **more}

    def run(self, state: str, vassals: list[Json], check: bool = False, **more: Any) -> Json:
        return ansible_modules.run("vassals", self.arguments(state, vassals, **more), check=check)

    def files(self) -> list[str]:
        """Everything in the folder that the emperor watches."""
        return sorted(path.name for path in (self.fleet.devices_dir / "one" / "vassals").iterdir())

    def ask(self, result: Json, path: str = "/tell") -> Json:
        """What the vassal at the address that the module gave answers."""
        (upstream,) = result["upstreams"]
        return fleet_socket.request(upstream["address"], "uwsgi", path).json()

    def pids(self, vassals: list[Json]) -> set[int]:
        """Master and workers of a vassal."""
        stats = self.fleet.stats(vassals[0])
        return {stats["pid"], *(worker["pid"] for worker in stats["workers"])}


@pytest.fixture
def host(fleet: Fleet) -> Iterator[Host]:
    with fleet.emperor("one"):
        yield Host(fleet)


def file_of(vassals: list[Json]) -> str:
    return f"{vassals[0]['name']}.ini"


def test_a_release_comes_up_is_replaced_and_retired(host: Host) -> None:
    first = host.wanted("r1")
    planned = host.run("started", first, check=True)
    assert planned["changed"]
    assert host.files() == [], "check mode"

    started = host.run("started", first)
    assert not started["failed"], started
    assert started["started"] == planned["started"] == [f"one/{first[0]['name']}"]
    assert started["upstreams"] == planned["upstreams"]
    assert started["upstreams"] == [
        {"service": "tiny", "device": "one", "address": f"{host.fleet.run_dir}/one/{first[0]['name']}.sock"}
    ]
    assert host.files() == [file_of(first)]
    assert host.fleet.accepting(first[0])

    again = host.run("started", first)
    assert (again["changed"], again["started"]) == (False, [])
    assert again["upstreams"] == started["upstreams"]

    second = host.wanted("r2")
    new = host.run("started", second)
    assert new["changed"]
    assert host.files() == sorted([file_of(first), file_of(second)])
    assert (host.ask(started)["release"], host.ask(new)["release"]) == ("r1", "r2")
    before = host.pids(second)

    assert host.run("retired", second, check=True)["removed"] == [f"one/{first[0]['name']}"]
    assert len(host.files()) == 2, "check mode"
    (host.fleet.devices_dir / "one" / "vassals" / ".tiny--r0.partial").write_text("left by a killed run")
    retired = host.run("retired", second)
    assert (retired["changed"], retired["removed"]) == (True, [f"one/{first[0]['name']}"])
    assert host.files() == [file_of(second)]
    assert not Path(started["upstreams"][0]["address"]).exists()
    assert host.pids(second) == before, "the new one was not touched"
    assert len(before) == 3
    assert not host.run("retired", second)["changed"]

    reverted = host.run("reverted", [], names=new["started"])
    assert reverted["changed"]
    assert host.files() == []
    assert not list((host.fleet.run_dir / "one").glob("tiny*"))


def test_retiring_waits_for_the_requests_that_run(host: Host) -> None:
    started = host.run("started", host.wanted("r1", workers=1))
    answers: list[fleet_socket.Answer] = []
    address = started["upstreams"][0]["address"]
    request = threading.Thread(
        target=lambda: answers.append(fleet_socket.request(address, "uwsgi", "/tell?seconds=2", timeout=20))
    )
    request.start()
    wait_for(lambda: busy(host, started), "the request to be taken")
    began = time.monotonic()
    retired = host.run("retired", [])
    assert retired["changed"]
    request.join()
    assert [answer.status for answer in answers] == [200], "it was answered, not cut"
    assert time.monotonic() - began > 1
    assert not Path(address).exists()


def busy(host: Host, started: Json) -> bool:
    name = started["started"][0].split("/")[1]
    workers = fleet_socket.stats(f"{host.fleet.run_dir}/one/{name}.stats")["workers"]
    return any(worker["status"] == "busy" for worker in workers)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"environment": {"TINY_CRASH": "1"}}, ["it crashes while starting", "RuntimeError: TINY_CRASH is set"]),
        ({"uwsgi_options": {"no-such-option": 1}}, ["it crashes while starting", "unknown config directive: no-such-op"]),
        ({"environment": {"TINY_ANSWER": "43"}}, ["sample has a wrong answer: answer is '43', expected '42'"]),
        ({"sample": {**SAMPLE, "expect": {"score": 1}}}, ["sample has a wrong answer: score is missing"]),
        ({"callable": "other"}, ["sample has a wrong answer: answer is missing"]),
    ],
    ids=["crash", "option", "answer", "member", "no JSON"],
)
def test_a_broken_release_is_taken_back_while_the_former_one_serves(host: Host, options: Json, said: list[str]) -> None:
    former = host.wanted("r1", workers=1)
    started = host.run("started", former)
    before = host.pids(former)
    broken = host.run("started", host.wanted("r2", workers=1, **{"load_seconds": 4, **options}))
    assert broken["failed"]
    assert "Vassal one/tiny--r2-" in broken["msg"]
    assert "The new vassals were removed; the former ones serve on." in broken["msg"]
    assert f"tail -n 100 {host.fleet.log_dir}/uwsgi-emperor@one.log" in broken["msg"]
    assert [text for text in said if text not in broken["msg"]] == [], broken["msg"]
    assert host.files() == [file_of(former)]
    assert host.pids(former) == before
    assert host.ask(started)["release"] == "r1"
    assert [path.name for path in (host.fleet.run_dir / "one").glob("tiny--r2*")] == []


def test_a_vassal_that_loads_long_is_no_crash(host: Host) -> None:
    """Its master is started once: neither its own stats nor the emperor's make two of it."""
    result = host.run("started", host.wanted("r1", load_seconds=2, sample={**SAMPLE, "expect": {"answer": "41"}}))
    assert result["failed"]
    assert "after 2 s: the sample has a wrong answer" in result["msg"]
    assert "crashes" not in result["msg"]


def test_a_vassal_that_is_there_but_does_not_serve_is_told(host: Host) -> None:
    """Nothing is missing, so nothing is removed."""
    vassals = host.wanted("r1", load_seconds=2)
    host.run("started", vassals)
    vassals[0]["workers"] = 3
    result = host.run("started", vassals)
    assert result["failed"]
    assert "after 2 s: 2 of 3 workers accept requests" in result["msg"]
    assert "removed" not in result["msg"]
    assert host.files() == [file_of(vassals)]


def test_without_an_emperor_the_file_is_taken_back(fleet: Fleet) -> None:
    host = Host(fleet)
    result = host.run("started", host.wanted("r1", load_seconds=1))
    assert result["failed"]
    assert "after 1 s" in result["msg"]
    assert "No such file or directory" in result["msg"]
    assert host.files() == []


def test_without_stats_it_is_enough_that_it_answers(host: Host) -> None:
    started = host.run("started", host.wanted("r1", stats=False))
    assert not started["failed"], started
    assert host.ask(started)["release"] == "r1"
    broken = host.run("started", host.wanted("r2", stats=False, environment={"TINY_CRASH": "1"}))
    assert broken["failed"]
    assert "it crashes while starting" in broken["msg"]


def test_tcp_ports_alternate_between_releases(host: Host) -> None:
    first, second = processes.free_ports(2, stride=50)
    seen = []
    for release in ("r1", "r2", "r3"):
        vassals = host.wanted(release, transport="tcp", base_port=first, workers=1)
        planned = host.run("started", vassals, check=True)
        result = host.run("started", vassals)
        assert not result["failed"], result
        assert result["upstreams"] == planned["upstreams"]
        assert host.ask(result)["release"] == release
        host.run("retired", vassals)
        seen.append(result["upstreams"][0]["address"])
        assert host.run("started", vassals)["upstreams"] == result["upstreams"], "where it is, not where it would be"
    assert seen == [f"127.0.0.1:{port}" for port in (first, second, first)]


def test_both_tcp_ports_taken(host: Host) -> None:
    first, second = processes.free_ports(2, stride=50)
    for release in ("r1", "r2"):
        host.run("started", host.wanted(release, transport="tcp", base_port=first, workers=1))
    result = host.run("started", host.wanted("r3", transport="tcp", base_port=first, workers=1))
    assert result["failed"]
    assert f"ports [{first}, {second}] are both taken" in result["msg"]
    assert len(host.files()) == 2


def test_status_of_the_host(host: Host) -> None:
    """What `./fleet status` shows of it."""

    def status() -> Json:
        folders = {"devices_dir": str(host.fleet.devices_dir), "run_dir": str(host.fleet.run_dir)}
        result = ansible_modules.run("host_status", {"devices": ONE, **folders})
        assert not result["changed"]
        (device,) = result["status"]["devices"]
        (vassal,) = device["vassals"]
        return dict(vassal)

    vassals = host.wanted("r1")
    host.run("started", vassals)
    found = status()
    assert {name: found[name] for name in ("service", "release", "workers", "accepting", "busy", "state")} == {
        **{"service": "tiny", "release": "r1", "workers": 2, "accepting": 2},
        **{"busy": 0, "state": "ok"},
    }
    assert found["requests"] >= 2, "the readiness path and the sample"
    path = host.fleet.devices_dir / "one" / "vassals" / file_of(vassals)
    path.rename(path.with_name("tiny--r2-000000.ini"))
    found = status()
    assert (found["state"], found["name"]) == ("DOWN", "tiny--r2-000000")


def test_the_emperor_ends_with_its_vassals(fleet: Fleet) -> None:
    with ExitStack() as stack:
        emperor = stack.enter_context(fleet.emperor("one"))
        host = Host(fleet)
        host.run("started", host.wanted("r1"))
        assert len(processes.marked()) == 4, "emperor, master and two workers"
        emperor.stop()
        wait_for(lambda: not processes.marked(), "all of them to end")
        assert emperor.process.returncode == 0
