"""The walk of a host from one release to another, with real emperors, vassals and nginx, under load."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import processes
import pytest
import release_switch
from nginx_configuration import Configuration
from release_switch import Outage, SwitchError
from stack import Fleet, Json
from switch_host import DEVICES, RUN, Client, Host, serving
from upstreams import Drained, Upstreams, mark


@pytest.fixture
def host(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host that serves release r1 on two devices."""
    host = Host(fleet)
    monkeypatch.setattr(release_switch, "manager", lambda kind: host.units)
    monkeypatch.setattr(release_switch, "note", lambda *arguments, **fields: "")
    with serving(host):
        yield host


def test_a_release_is_switched_under_load_and_a_second_time_nothing_is_done(host: Host) -> None:
    assert host.vassals() == ["one r1", "two r1"]
    plan = host.switch(host.wanted("r2")).plan()
    assert (plan["changed"], plan["stops"]) == (True, [])
    assert host.vassals() == ["one r1", "two r1"], "a plan does nothing"
    with host.load() as answers:
        host.go(host.wanted("r2"))
    releases = [release for _, release, _ in answers]
    assert set(releases) == {"r1", "r2"}
    assert host.vassals() == ["one r2", "two r2"]
    assert not list(host.fleet.run_dir.glob("*/*r1*")), "no socket is left"
    again = host.switch(host.wanted("r2"))
    assert again.plan()["steps"] == []
    again.apply()
    assert again.did == []


def test_a_host_that_failed_its_checks_the_first_time_gets_its_record_later(host: Host) -> None:
    """All that a deploy brings is there, but for the note that it is in force."""
    Path(host.places()["deployed_file"]).unlink()
    assert host.switch(host.wanted("r1")).plan()["steps"] == ["note the deployment"]
    host.go(host.wanted("r1"))
    assert host.deployments().current()["id"] == "r1"
    assert host.switch(host.wanted("r1")).plan()["steps"] == []


def test_until_it_has_settled_the_former_release_helps_out_and_going_back_is_a_reload(host: Host) -> None:
    former = host.deployments().current()["record"]
    host.go(host.wanted("r2"), settle=False)
    assert host.vassals() == ["one r1", "one r2", "two r1", "two r2"]
    assert len([line for line in host.upstream() if line.endswith(" backup max_fails=0;")]) == 2
    site = (host.root / "sites-enabled" / "tell.conf").read_text()
    assert "uwsgi_next_upstream error timeout non_idempotent;" in site
    # The new release dies on both devices, again and again.
    with host.load() as answers:
        for path in host.fleet.devices_dir.glob("*/vassals/*r2*.ini"):
            stats = Path(host.fleet.run_dir, path.parent.parent.name, f"{path.stem}.sock")
            stats.unlink()
        time.sleep(0.5)
        began = time.monotonic()
        host.restore(former, forget=True)
        assert time.monotonic() - began < 15
    assert "r1" in {release for _, release, _ in answers}
    assert host.vassals() == ["one r1", "two r1"]
    assert not [line for line in host.upstream() if "backup" in line]
    current = host.deployments().current()
    assert (current["record"], current["former"]) == (former, "")


def test_a_switch_that_was_cut_off_before_it_settled_is_finished_by_the_next(host: Host) -> None:
    host.go(host.wanted("r2"), settle=False)
    with host.load():
        done = host.go(host.wanted("r2"))
    assert done.did
    assert host.vassals() == ["one r2", "two r2"]
    assert host.deployments().current()["id"] == "r2"


@pytest.mark.parametrize("mode", ["beside", "in_place"])
def test_a_release_that_answers_wrongly_is_taken_back(host: Host, mode: str) -> None:
    record = host.deployments().current()["record"]
    bad = host.wanted("r2", environment={"TINY_ANSWER": "43"}, load_seconds=3)
    with host.load() as answers, pytest.raises(SwitchError, match="the sample has a wrong answer"):
        host.go(bad, switch=mode)
    assert {release for _, release, _ in answers} == {"r1"}
    assert host.vassals() == ["one r1", "two r1"]
    assert not [line for line in host.upstream() if "down" in line]
    assert host.deployments().current()["record"] == record


def test_where_memory_is_short_one_device_after_the_other_is_out(host: Host) -> None:
    with host.load() as answers:
        host.go(host.wanted("r2"), switch="in_place")
    assert Counter(release for _, release, _ in answers).keys() == {"r1", "r2"}
    assert host.vassals() == ["one r2", "two r2"]
    assert not [line for line in host.upstream() if "down" in line]


def test_the_last_device_that_serves_is_not_stopped(host: Host) -> None:
    only = host.wanted("r1", DEVICES[:1])
    host.go(only)
    assert host.vassals() == ["one r1"], "the other device is gone"
    assert host.units.told[-2:] == ["remove uwsgi-emperor@two", "reread"]
    new = host.wanted("r2", DEVICES[:1])
    assert "no other device of this host serves" in host.switch(new, switch="in_place").plan()["stops"][0]
    with host.load(), pytest.raises(Outage, match="-e allow_outage=true"):
        host.go(new, switch="in_place")
    assert host.vassals() == ["one r1"]
    host.go(new, switch="in_place", may_stop=True)
    assert host.vassals() == ["one r2"]


def test_an_emperor_restarts_with_its_device_out(host: Host) -> None:
    seen: list[list[str]] = []
    host.units.older = {"emperor@one": ["emperor.ini"]}
    restart = host.units.restart

    def noted(name: str) -> None:
        seen.append(host.upstream())
        restart(name)

    host.units.restart = noted  # type: ignore[method-assign]
    plan = host.switch(host.wanted("r1")).plan()
    assert plan["steps"] == ["restart emperor@one, since emperor.ini changed"]
    assert plan["stops"] == []
    with host.load():
        host.go(host.wanted("r1"))
    assert host.units.told == ["restart emperor@one"]
    assert [line.endswith(" down;") for line in seen[0]] == [True, False]
    assert not [line for line in host.upstream() if "down" in line]


def test_a_restart_of_nginx_or_of_the_last_emperor_has_to_be_allowed(host: Host) -> None:
    host.units.older = {"nginx": ["fleet.conf"]}
    assert host.switch(host.wanted("r1")).plan()["stops"] == ["restart nginx, since fleet.conf changed"]
    with pytest.raises(Outage, match=r"nginx must restart, since fleet\.conf changed"):
        host.go(host.wanted("r1"))
    assert host.units.told == []
    host.go(host.wanted("r1"), may_stop=True)
    assert host.units.told == ["restart nginx"]


def test_an_nginx_that_was_upgraded_restarts_with_the_requests_elsewhere(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_switch, "program_changed", lambda pid: ["/usr/sbin/nginx"] if pid else [])
    plan = host.switch(host.wanted("r1")).plan()
    assert plan["stops"] == ["restart nginx, since /usr/sbin/nginx changed"]
    with pytest.raises(Outage, match="nginx must restart, since /usr/sbin/nginx changed"):
        host.go(host.wanted("r1"))
    host.go(host.wanted("r1"), may_stop=True)
    assert host.units.told == ["restart nginx"]


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        (["fleet.conf"], "replace nginx, since fleet.conf changed"),
        (["/usr/sbin/nginx"], "replace nginx, since /usr/sbin/nginx changed"),
        (["fleet.conf", "sandbox.conf"], "restart nginx, since fleet.conf, sandbox.conf changed"),
    ],
)
def test_where_the_role_says_so_nginx_is_replaced_and_not_stopped(
    host: Host, changed: list[str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an edge, which has no devices, and whose requests would have to go through another one."""
    monkeypatch.setattr(Configuration, "take_over", lambda self: 4711)
    monkeypatch.setattr(host.units, "pid", lambda name: 4711)
    host.units.older = {"nginx": changed}
    wanted = host.wanted("r1")
    wanted["nginx_unit"] = {"name": "nginx", "files": ["fleet.conf", "sandbox.conf"], "in_place": ["fleet.conf"]}
    none: list[Json] = []
    for devices in (wanted["devices"], none):
        plan = host.switch({**wanted, "devices": devices}).plan()
        assert step in plan["steps"]
        assert plan["stops"] == ([step] if step.startswith("restart") else [])
    if step.startswith("restart"):
        with pytest.raises(Outage):
            host.go(wanted)
        host.go(wanted, may_stop=True)
        assert host.units.told == ["restart nginx"]
    else:
        assert "replaced nginx" in host.go(wanted).did
        assert host.units.told == []


def test_an_nginx_that_was_there_before_is_restarted_and_not_replaced(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs without what the unit's files say, and has none of our requests."""
    host.units.older = {"nginx": ["fleet.conf"]}
    unit = {"name": "nginx", "files": ["fleet.conf"], "in_place": ["fleet.conf"]}
    switch = host.switch({**host.wanted("r1"), "nginx_unit": unit})
    switch.was_ours = False
    switch.serve()
    assert host.units.told == ["restart nginx"]


def test_a_unit_that_is_wanted_no_more_is_removed_and_going_back_leaves_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_switch, "UNITS", {"systemd": (tmp_path, ".service")})
    unit = tmp_path / "fleet-watch.service"
    unit.write_text("")
    wanted = host.wanted("r1")
    (record,) = host.deployments().names()
    host.restore(record)
    assert unit.exists()
    watch = {"name": "fleet-watch.service", "files": []}
    assert "remove fleet-watch" not in host.switch({**wanted, "units": [*wanted["units"], watch]}).plan()["steps"]
    assert "remove fleet-watch" in host.switch(wanted).plan()["steps"]
    host.go(wanted)
    assert "remove fleet-watch.service" in host.units.told
    assert not unit.exists()


def test_a_drained_device_stays_out_over_a_switch(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    drain_module = ansible_modules.load("modules", "device_drain")
    monkeypatch.setattr(drain_module, "note", lambda *arguments, **fields: "")
    drain = {"device": "one", "run": RUN, **host.places()}
    with host.load():
        done = ansible_modules.call(drain_module, {**drain, "state": "drained", "why": "a new fan"})
        assert done["changed"], done
        assert done["drained"]["one"]["why"] == "a new fan"
    assert {Client(host.port).ask()[2] for _ in range(10)} == {"two"}
    refused = ansible_modules.call(drain_module, {**drain, "state": "drained", "device": "two"})
    assert refused["failed"]
    assert "two is the only device of this host that takes requests" in refused["msg"]
    unknown = ansible_modules.call(drain_module, {**drain, "state": "drained", "device": "three"})
    assert "no device 'three'; it has: one, two" in unknown["msg"]
    with host.load() as answers:
        host.go(host.wanted("r2"))
    assert {device for _, _, device in answers} == {"two"}
    assert not ansible_modules.call(drain_module, {**drain, "state": "drained"})["changed"]
    with host.load():
        assert ansible_modules.call(drain_module, {**drain, "state": "undrained"})["changed"]
    assert not [line for line in host.upstream() if "down" in line]
    assert Drained(Path(host.places()["drained_file"])).read() == {}


def busy(host: Host) -> list[str]:
    """Devices whose worker is busy."""
    vassals = host.wanted("r1")["vassals"]
    return [one["device"] for one in vassals if "busy" in [w["status"] for w in host.fleet.stats(one)["workers"]]]


def test_a_device_with_a_request_that_takes_too_long_is_out_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it is waited for stands in the record of the deployment."""
    wanted = host.wanted("r1")
    host.go({**wanted, "nginx": {**wanted["nginx"], "wait_seconds": 1}})
    drain_module = ansible_modules.load("modules", "device_drain")
    noted: list[str] = []
    monkeypatch.setattr(drain_module, "note", lambda run, event, log, **fields: noted.append(event))
    drain = {"device": "one", "run": RUN, "state": "drained", **host.places()}
    # One for each device.
    slow = [Client(host.port, "/tell?seconds=6") for _ in range(2)]
    asked = [threading.Thread(target=lambda client=one: client.answers.append(client.ask())) for one in slow]
    for one in asked:
        one.start()
    processes.wait_for(lambda: len(busy(host)) == 2, "both requests to be on their way")
    late = ansible_modules.call(drain_module, drain)
    assert late["failed"]
    assert "one is out, but requests are on their way to it still: nginx workers" in late["msg"]
    assert "after 1 s" in late["msg"]
    assert list(Drained(Path(host.places()["drained_file"])).read()) == ["one"]
    assert noted == ["drained"]
    assert {Client(host.port).ask()[2] for _ in range(10)} == {"two"}
    for one in asked:
        one.join()
    assert sorted(client.answers[0][::2] for client in slow) == [(200, "one"), (200, "two")]
    again = ansible_modules.call(drain_module, drain)
    assert not again["failed"], again
    assert noted == ["drained"]


def test_a_drain_that_nginx_does_not_take_is_not_noted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    drain_module = ansible_modules.load("modules", "device_drain")
    monkeypatch.setattr(drain_module, "note", lambda *arguments, **fields: "")
    working = host.wrapper.read_text()
    host.wrapper.write_text(working.replace("-s reload ;;", "-s no-such-signal ;;"))
    refused = ansible_modules.call(drain_module, {"device": "one", "run": RUN, "state": "drained", **host.places()})
    assert "nginx -s reload failed" in refused["msg"]
    assert Drained(Path(host.places()["drained_file"])).read() == {}
    assert not [line for line in host.upstream() if "down" in line]


def test_a_device_that_does_not_serve_stays_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    drain_module = ansible_modules.load("modules", "device_drain")
    monkeypatch.setattr(drain_module, "note", lambda *arguments, **fields: "")
    device = {"device": "one", "run": RUN, **host.places()}
    assert ansible_modules.call(drain_module, {**device, "state": "drained"})["changed"]
    (ini,) = (host.fleet.devices_dir / "one" / "vassals").glob("*.ini")
    # As one whose model takes long to load.
    ini.write_text(ini.read_text().replace("workers = 1\n", "workers = 1\nexec-pre-app = sleep 8\n"))
    processes.wait_for(lambda: not host.fleet.accepting(host.wanted("r1")["vassals"][0]), "the vassal to load")
    with host.load():
        refused = ansible_modules.call(drain_module, {**device, "state": "undrained"})
    assert refused["failed"]
    assert "one stays out: vassal one/tell--r1" in refused["msg"]
    assert "0 of 1 workers accept requests" in refused["msg"] or "stats" in refused["msg"], refused["msg"]
    assert list(Drained(Path(host.places()["drained_file"])).read()) == ["one"]
    processes.wait_for(lambda: host.fleet.accepting(host.wanted("r1")["vassals"][0]), "the vassal to serve")
    with host.load():
        assert ansible_modules.call(drain_module, {**device, "state": "undrained"})["changed"]
    assert Drained(Path(host.places()["drained_file"])).read() == {}


def test_a_configuration_that_nginx_refuses_starts_nothing(host: Host) -> None:
    bad = host.wanted("r2")
    for one in bad["nginx"]["files"]:
        one["content"] = one["content"].replace("server_name _;", "server_name _; nonsense on;")
    with host.load(), pytest.raises(SwitchError, match='unknown directive "nonsense"'):
        host.go(bad)
    assert host.vassals() == ["one r1", "two r1"]


def test_back_and_forth_between_deployments(host: Host) -> None:
    deployments = host.deployments()
    first = deployments.current()["record"]
    host.go(host.wanted("r2"))
    second = deployments.current()
    assert (second["id"], second["former"], deployments.former()) == ("r2", first, first)
    with host.load() as answers:
        host.restore(first)
    assert answers[-1][1] == "r1"
    assert (deployments.current()["id"], deployments.former()) == ("r1", second["record"])
    with pytest.raises(LookupError, match="nothing"):
        deployments.read("nothing")
    (host.fleet.folder / "releases" / "r2" / "REVISION.json").unlink()
    assert deployments.names() == [first], "a release that is gone cannot be gone back to"


# ---- memory


@pytest.fixture
def measured(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[..., str]]:
    """A host whose memory is as the test says; gives why old and new do not fit."""

    def make(free: int, of_process: int, device: dict[str, Any] | None = None) -> Callable[..., str]:
        monkeypatch.setattr(release_switch.memory, "free_host_mib", lambda: free)  # type: ignore[attr-defined]
        monkeypatch.setattr(release_switch.memory, "host_mib_of", lambda pid: of_process)  # type: ignore[attr-defined]
        for name, value in (device or {}).items():
            monkeypatch.setattr(release_switch.memory, name, lambda key, value=value: value)  # type: ignore[attr-defined]

        def lacks(kind: str = "cpu", **options: Any) -> str:
            wanted = host.wanted("r2", **options)
            for one in wanted["devices"]:
                one.update(kind=kind, uuid="GPU-1")
            try:
                return host.switch(wanted).lacks(["one", "two"])
            finally:
                for one in wanted["devices"]:
                    one.update(kind="cpu", uuid="")

        return lacks

    return make


def test_old_and_new_must_fit_into_the_hosts_memory(measured: Callable[..., Callable[..., str]]) -> None:
    small = {"host_reserve_mib": 0, "host_memory_per_worker_mib": 4000}
    assert measured(1000, 400)(**small) == "", "what runs takes 400 MiB on each device"
    assert "need about 1200 MiB of host memory, and 1000 MiB are free" in measured(1000, 600)(**small)
    assert "need about 8000 MiB" in measured(1000, 0)(**small), "nothing was measured, so what is configured counts"
    assert "and 0 MiB are free" in measured(1000, 400)(**{**small, "host_reserve_mib": 1024})


def test_old_and_new_must_fit_into_the_devices_memory(measured: Callable[..., Callable[..., str]]) -> None:
    options = {"memory_per_worker_mib": 3000}
    free = {"free_device_mib": 5000, "device_mib_of": 4000}
    assert measured(90000, 1, free)("gpu", **options) == ""
    assert "need about 4000 MiB of device memory, and 3000 MiB are free" in measured(
        90000, 1, {**free, "free_device_mib": 3000}
    )("gpu", **options)
    # A MIG slice tells neither: 8 GiB less what the old workers are configured to take.
    nobody = {"free_device_mib": None, "device_mib_of": None}
    assert measured(90000, 1, nobody)("mig", **options) == ""
    assert "need about 5000 MiB of device memory, and 3192 MiB are free" in measured(90000, 1, nobody)(
        "mig", memory_per_worker_mib=5000
    )


# ---- upstream files


def test_marks_and_asks_which_servers_are_out(tmp_path: Path, host: Host) -> None:
    servers = ("unix:/run/a.sock weight=1", "127.0.0.1:91", "127.0.0.1:9100 weight=2 max_fails=3")
    text = "".join(f"    server {server};\n" for server in servers)
    out = mark(text, ["127.0.0.1:91", "/run/a.sock"], True)
    assert [line.endswith(" down;") for line in out.splitlines()] == [True, True, False]
    assert mark(out, ["127.0.0.1:91", "/run/a.sock"], True) == out
    assert mark(out, ["127.0.0.1:91", "/run/a.sock"], False) == text
    (tmp_path / "x.conf").write_text(out)
    upstreams = Upstreams({**host.places(), "upstreams_dir": str(tmp_path)}, 5)
    assert [upstreams.leads_to(one) for one in ("127.0.0.1:91", "127.0.0.1:9100", "/run/a.sock")] == [
        False,
        True,
        False,
    ]
