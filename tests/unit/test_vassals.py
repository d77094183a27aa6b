"""Vassals of a real emperor, brought up, retired and taken back."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ansible_modules
import fleet_socket
import measured
import memory
import processes
import pytest
import vassal_files
from processes import wait_for
from stack import CPU, GROUP, Fleet, Json
from vassal_files import VassalError, Vassals

TINY = Path(__file__).parent / "data" / "tiny"
ONE = [{"name": "one", **CPU}]
SAMPLE = {"text": "hello", "content_type": "text/plain", "expect": {"answer": "42", "bytes": 5}}
SERVICE = {
    "route": "/tell",
    "wsgi_file": "app/tiny.py",
    "ready_path": "/ready",
    "workers": 2,
    "listen": 64,
    "load_seconds": 20,
    "sample": SAMPLE,
}


class Host:
    """A fleet with an emperor, and the module over it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.folder = fleet.devices_dir / "one" / "vassals"

    def wanted(self, name: str, release: str = "r1", **options: Any) -> list[Json]:
        """The vassal of a service of a release, which is laid when it is not there."""
        folder = self.fleet.folder / "releases" / release
        if not folder.exists():
            self.fleet.release(release, TINY, Path(sys.prefix))
        published = {"id": release, "dir": str(folder), "environment": ""}
        return self.fleet.vassals([{"name": name, **SERVICE, **options}], published, ONE)

    def vassals(self, wanted: list[Json], **more: Any) -> Vassals:
        return Vassals({"vassals": wanted, "stop_seconds": 20, "group": GROUP, **self.fleet.folders(), **more})

    def start(self, wanted: list[Json], **more: Any) -> Vassals:
        """Bring vassals up as a switch does, and expect no trouble."""
        vassals = self.vassals(wanted, **more)
        vassals.remove(vassals.forgotten())
        vassals.start(vassals.vassals)
        return vassals

    def complaint(self, wanted: list[Json], **more: Any) -> str:
        """Why vassals could not be brought up."""
        try:
            self.start(wanted, **more)
        except VassalError as error:
            return str(error)
        return ""

    def retire(self, wanted: list[Json]) -> list[str]:
        """Stop all others; gives their names."""
        vassals = self.vassals(wanted)
        doomed = vassals.unwanted()
        vassals.clear_partials()
        vassals.remove(doomed)
        return vassals.names(doomed)

    def files(self, name: str) -> list[str]:
        """Every file of a service in the folder that the emperor watches."""
        return sorted(path.name for path in self.folder.iterdir() if name in path.name)

    def ask(self, vassals: Vassals, path: str = "/tell") -> Json:
        """What the one wanted vassal answers."""
        return fleet_socket.request(self.address(vassals), "uwsgi", path).json()

    def address(self, vassals: Vassals) -> str:
        (address,) = vassals.addresses().values()
        return address

    def pids(self, vassals: list[Json]) -> set[int]:
        """Master and workers of a vassal."""
        stats = self.fleet.stats(vassals[0])
        return {stats["pid"], *(worker["pid"] for worker in stats["workers"])}

    def busy(self, vassals: list[Json]) -> bool:
        return any(worker["status"] == "busy" for worker in self.fleet.stats(vassals[0])["workers"])


@pytest.fixture(scope="module")
def host(new_fleet: Callable[[], Fleet]) -> Iterator[Host]:
    """One emperor for the tests of this file: each of them has services of its own."""
    fleet = new_fleet()
    with fleet.emperor("one"):
        yield Host(fleet)


def file_of(vassals: list[Json]) -> str:
    return f"{vassals[0]['name']}.ini"


def test_a_release_comes_up_is_replaced_and_retired(host: Host) -> None:
    first = host.wanted("switch")
    planned = host.vassals(first)
    assert [one.full_name for one in planned.missing()] == [f"one/{first[0]['name']}"]
    address = f"{host.fleet.run_dir}/one/{first[0]['name']}.sock"
    assert planned.addresses() == {"switch/one": address}
    assert host.files("switch") == [], "nothing was done yet"

    started = host.start(first)
    assert started.addresses() == {"switch/one": address}
    assert host.files("switch") == [file_of(first)]
    assert host.fleet.accepting(first[0])
    again = host.vassals(first)
    assert (again.missing(), again.start(again.vassals)) == ([], [])

    second = host.wanted("switch", "r2")
    new = host.start(second)
    assert host.files("switch") == sorted([file_of(first), file_of(second)])
    assert (host.ask(started)["release"], host.ask(new)["release"]) == ("r1", "r2")
    before = host.pids(second)
    assert len(before) == 3

    (host.folder / ".switch--r0.partial").write_text("left by a killed run")
    assert host.retire(second) == [f"one/{first[0]['name']}"]
    assert host.files("switch") == [file_of(second)]
    assert not Path(address).exists()
    assert host.pids(second) == before, "the new one was not touched"
    assert host.retire(second) == []

    host.retire([])
    assert host.files("switch") == []
    assert not list((host.fleet.run_dir / "one").glob("switch*"))


def test_retiring_waits_for_the_requests_that_run(host: Host) -> None:
    vassals = host.wanted("slow", workers=1)
    address = host.address(host.start(vassals))
    answers: list[fleet_socket.Answer] = []
    request = threading.Thread(
        target=lambda: answers.append(fleet_socket.request(address, "uwsgi", "/tell?seconds=1.8", timeout=20))
    )
    request.start()
    wait_for(lambda: host.busy(vassals), "the request to be taken")
    began = time.monotonic()
    assert host.retire([])
    # The answer is on its way through this process; the vassal has sent it before it went.
    request.join(0.5)
    assert [answer.status for answer in answers] == [200], "it was answered, not cut"
    assert time.monotonic() - began > 1
    assert not Path(address).exists()


BROKEN: dict[str, tuple[Json, str]] = {
    "crash": ({"environment": {"TINY_CRASH": "1"}}, "it crashes while starting"),
    "option": ({"uwsgi_options": {"no-such-option": 1}}, "it crashes while starting"),
    "no-stats": ({"environment": {"TINY_CRASH": "1"}, "stats": False}, "it crashes while starting"),
    "mended": ({"release": "incomplete"}, "it crashes while starting"),
    # Their masters are started once: neither their own stats nor the emperor's make two of it.
    "answer": (
        {"environment": {"TINY_ANSWER": "43"}, "load_seconds": 5},
        "after 5 s: the sample has a wrong answer: answer is '43', expected '42'",
    ),
    "member": (
        {"sample": {**SAMPLE, "expect": {"score": 1}}, "load_seconds": 5},
        "after 5 s: the sample has a wrong answer: score is missing",
    ),
    "text": (
        {"callable": "other", "load_seconds": 5},
        "after 5 s: the sample has a wrong answer: answer is missing",
    ),
}


def test_a_broken_release_is_taken_back_while_the_former_one_serves(host: Host) -> None:
    former = host.wanted("steady")
    started = host.start(former)
    before = host.pids(former)
    # All at once, since each of them takes some seconds to be found out.
    wanted = {
        name: host.wanted(name, workers=1, **{"load_seconds": 25, **options}) for name, (options, _) in BROKEN.items()
    }
    mended = wanted["mended"]
    app = host.fleet.folder / "releases" / "incomplete" / "app"
    app.unlink()
    with ThreadPoolExecutor(len(wanted)) as pool:
        messages = dict(zip(wanted, pool.map(host.complaint, wanted.values()), strict=True))
    for name, (_, said) in BROKEN.items():
        message = messages[name]
        assert re.match(rf"Vassal one/{name}--\w+-[0-9a-f]{{6}} does not serve: {re.escape(said)}", message), message
        assert "The new vassals were removed; the former ones serve on." in message
        assert f"tail -n 100 {host.fleet.log_dir}/uwsgi-emperor@one.log" in message
        assert host.files(name) == []
        assert not list((host.fleet.run_dir / "one").glob(f"{name}--*"))
    assert host.pids(former) == before
    assert host.ask(started)["release"] == "r1"

    assert "Last lines of its log:\n" in messages["mended"]
    assert "failed to open python file app/tiny.py" in "".join(messages.values())
    # The emperor remembers the crashes by the vassal's name; they do not count against the next try.
    app.symlink_to(TINY)
    host.start(mended)
    assert host.files("mended") == [file_of(mended)]


def test_a_vassal_that_is_there_but_does_not_serve_is_told(host: Host) -> None:
    """Nothing is missing, so nothing is removed."""
    vassals = host.wanted("there")
    host.start(vassals)
    vassals[0].update(workers=3, load_seconds=1)
    message = host.complaint(vassals)
    assert "after 1 s: 2 of 3 workers accept requests" in message
    assert "The new vassals were removed" not in message
    assert host.files("there") == [file_of(vassals)]


def measure(monkeypatch: pytest.MonkeyPatch, host_mib: int, device_mib: int) -> None:
    """Have a vassal of two workers found to take so much."""
    monkeypatch.setattr(memory, "host_mib_of", lambda _pid: host_mib)
    monkeypatch.setattr(memory, "device_mib_of", lambda _pid: device_mib)


@pytest.mark.parametrize(
    ("host_mib", "device_mib", "expected"),
    [
        # 8 GiB on the device, 31 GiB on the host; numbers of two workers, of which 1.5 times as much is reckoned.
        (200, 0, 2),
        (200, 16_000, 1),
        (50_000, 0, 1),
    ],
)
def test_workers_auto_is_settled_by_what_the_first_load_takes(
    host: Host, monkeypatch: pytest.MonkeyPatch, host_mib: int, device_mib: int, expected: int
) -> None:
    measure(monkeypatch, host_mib, device_mib)
    # Other settings, so that what another case measured does not hold.
    case = {"CASE": f"{host_mib} {device_mib}"}
    wanted = host.wanted("auto", workers="auto", memory_per_worker_mib=4096, environment=case)
    assert wanted[0]["workers"] == 2, "as configured: two cores, and memory for two"
    host.start(wanted)
    assert vassal_files.workers_of(host.fleet.devices_dir / "one" / "vassals" / f"{wanted[0]['name']}.ini") == expected
    assert len([one for one in host.fleet.stats(wanted[0])["workers"] if one["pid"]]) == expected
    told = host.fleet.ask(wanted[0], "/").json()
    assert told["environment"]["OMP_NUM_THREADS"] == str(2 // expected)
    measure(monkeypatch, 1, 1)
    master = host.fleet.stats(wanted[0])["pid"]
    host.start(wanted)
    assert host.fleet.stats(wanted[0])["pid"] == master, "what was settled once stays"


def test_another_release_is_measured_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for release, device_mib, expected in (("r1", 16_000, 1), ("r2", 100, 2), ("r1", 100, 1)):
        measure(monkeypatch, 100, device_mib)
        wanted = host.wanted("auto", release, workers="auto", memory_per_worker_mib=4096)
        host.start(wanted)
        assert len([one for one in host.fleet.stats(wanted[0])["workers"] if one["pid"]]) == expected
        host.vassals(wanted).remove([host.vassals(wanted).vassals[0].path])


def test_measured_numbers_that_cannot_be_read_are_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    file.write_text("{")
    kept = measured.Measured(file)
    assert kept.get("r1", "k") is None
    assert kept.put("r1", "k", 100, 10) == {"host_mib": 150, "device_mib": 15} == kept.get("r1", "k")
    for number in range(2, 13):
        kept.put(f"r{number}", "k", 100, 10)
    assert kept.get("r1", "k") is None, "the release that was not loaded for the longest time is forgotten"
    assert kept.get("r12", "k") == kept.get("r3", "k")


def test_without_an_emperor_the_file_is_taken_back(fleet: Fleet) -> None:
    host = Host(fleet)
    message = host.complaint(host.wanted("alone", load_seconds=1))
    assert "after 1 s" in message
    assert "No such file or directory" in message
    assert host.files("alone") == []


def test_without_stats_it_is_enough_that_it_answers(host: Host) -> None:
    assert host.ask(host.start(host.wanted("quiet", stats=False)))["release"] == "r1"


def test_tcp_ports_alternate_between_releases(host: Host, tmp_path: Path) -> None:
    first, second = processes.free_ports(2, stride=50)
    releases = [
        host.wanted("tcp", release, transport="tcp", base_port=first, workers=1) for release in ("r1", "r2", "r3")
    ]

    def port(vassals: Vassals) -> int:
        return int(host.address(vassals).removeprefix("127.0.0.1:"))

    assert port(host.vassals(releases[0])) == first
    one = host.start(releases[0])
    assert port(host.vassals(releases[1])) == second
    two = host.start(releases[1])
    assert (port(one), port(two)) == (first, second)
    assert (host.ask(one)["release"], host.ask(two)["release"]) == ("r1", "r2")
    assert port(host.start(releases[1])) == second, "where it is, not where it would be"

    assert f"ports [{first}, {second}] are both taken" in host.complaint(releases[2])
    assert host.files("tcp") == sorted(map(file_of, releases[:2]))

    # nginx leads to r1: then r2 was left behind by a run that was cut off, and makes room.
    (tmp_path / "tcp.conf").write_text(f"    server 127.0.0.1:{first} weight=1 max_fails=3;\n")
    upstreams: Json = {"upstreams_dir": str(tmp_path)}
    three = host.start(releases[2], **upstreams)
    assert port(three) == second
    assert host.files("tcp") == sorted([file_of(releases[0]), file_of(releases[2])])
    assert (host.ask(one)["release"], host.ask(three)["release"]) == ("r1", "r3")

    host.retire(releases[2])
    assert port(host.start(releases[1])) == first


def test_status_of_the_host(host: Host) -> None:
    """What `./fleet status` shows of it."""
    up, quiet, down = host.wanted("up"), host.wanted("mute", stats=False, workers=1), host.wanted("down")
    host.start([*up, *quiet])
    # Where another emperor would look, which does not run.
    other = host.fleet.devices_dir / "two" / "vassals"
    other.mkdir(parents=True)
    (other / file_of(down)).write_text(down[0]["ini"])
    folders = {"devices_dir": str(host.fleet.devices_dir), "run_dir": str(host.fleet.run_dir)}
    result = ansible_modules.run("host_status", {"devices": [*ONE, {"name": "two"}], **folders})
    assert not result["changed"]
    found = {vassal["service"]: vassal for device in result["status"]["devices"] for vassal in device["vassals"]}
    names = ("name", "release", "workers", "accepting", "busy", "state")
    assert [tuple(found[service][name] for name in names) for service in ("up", "mute", "down")] == [
        (up[0]["name"], "r1", 2, 2, 0, "ok"),
        (quiet[0]["name"], "r1", 1, 0, 0, "NO STATS"),
        (down[0]["name"], "r1", 2, 0, 0, "DOWN"),
    ]
    assert found["up"]["requests"] >= 2, "the readiness path and the sample"


def test_the_emperor_ends_with_its_vassals(fleet: Fleet) -> None:
    with fleet.emperor("one") as emperor:
        host = Host(fleet)
        host.start(host.wanted("last"))
        assert len(emperor.processes()) == 4, "emperor, master and two workers"
        emperor.stop()
        wait_for(lambda: not emperor.processes(), "all of them to end")
        assert emperor.process.returncode == 0
