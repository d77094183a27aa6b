"""The validator: green over a host that serves, and red for each thing that is broken on purpose."""

import copy
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import ansible_modules
import environments
import listeners
import processes
import pytest
import tree
from nginx_configuration import children
from stack import CPU, USER, Fleet, Json

service_checks = ansible_modules.load("modules", "service_checks")
report = ansible_modules.load("filter", "report")
CHECKED = "{{ __services_resolved | services_checks }}"
ECHO: Json = {
    "name": "echo",
    "route": "/v1/echo",
    "model": "inference.models.echo:EchoModel",
    "workers": 2,
    "listen": 64,
    "max_body_mib": 1,
}


class Host:
    """A host that serves the echo model on one device."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        (self.port,) = processes.free_ports()
        self.services = [{**ECHO, "port": self.port}]
        release = fleet.release("r1", tree.ROOT / "app" / "src", environments.app().parent.parent)
        self.vassals = fleet.vassals(self.services, release, [{"name": "one", **CPU}])
        self.upstreams = fleet.upstreams(self.vassals)
        #: Only these are looked at, since the machine of the tests may run an nginx of its own.
        self.ports = {self.port}
        self.words = {"supervisorctl status": "X RUNNING pid 1", "systemctl is-active": "active"}
        self.words["systemctl is-enabled"] = "enabled"

    def lay(self, **variables: Any) -> None:
        self.fleet.lay(self.services, self.upstreams, site_listen_addresses=["127.0.0.1"], **variables)

    def spoil(self, old: str, new: str) -> None:
        """Change a line of nginx's site behind the back of everybody."""
        path = self.fleet.folder / "nginx" / "sites-available" / "echo.conf"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def reload(self) -> None:
        subprocess.run(self.fleet.nginx_command("-t"), check=True, capture_output=True)
        master = int((self.fleet.folder / "nginx.pid").read_text())
        former = children(master)
        subprocess.run(self.fleet.nginx_command("-s", "reload"), check=True, capture_output=True)
        processes.wait_for(lambda: children(master) - former and not children(master) & former, "the new workers")

    def arguments(self) -> Json:
        """What the role hands to the module."""
        found = self.fleet.roles.evaluate("services", CHECKED, services=self.services)
        folders = {"devices_dir": str(self.fleet.devices_dir), "run_dir": str(self.fleet.run_dir)}
        folders["pid_file"] = str(self.fleet.folder / "nginx.pid")
        return {
            **{"vassals": copy.deepcopy(self.vassals), "services": json.loads(json.dumps(found))},
            **{
                "units": ["uwsgi-emperor@one"],
                "manager": "supervisor",
                "user": USER,
                "release": "r1",
                "timeout_seconds": 5,
            },
            **folders,
        }


@pytest.fixture(scope="module")
def shared_host(new_fleet: Callable[[], Fleet]) -> Iterator[Host]:
    host = Host(new_fleet())
    fleet = host.fleet
    with fleet.emperor("one"):
        fleet.start(host.vassals)
        host.lay()
        with fleet.nginx([host.port]):
            yield host


@pytest.fixture
def host(shared_host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The host; units are answered for by ``words``, and only sockets of these tests are looked at."""
    everything = service_checks.listeners

    def listeners() -> list[Any]:
        return [one for one in everything() if one.port in shared_host.ports]

    monkeypatch.setattr(service_checks, "listeners", listeners)
    monkeypatch.setitem(service_checks.ports_of.__globals__, "listeners", listeners)
    monkeypatch.setattr(
        service_checks.AnsibleModule,
        "run_command",
        lambda module, command: (0, shared_host.words[" ".join(command[:2])], ""),
    )
    monkeypatch.setattr(shared_host, "words", dict(shared_host.words))
    monkeypatch.setattr(shared_host, "ports", set(shared_host.ports))
    return shared_host


@pytest.fixture
def mended(host: Host) -> Iterator[Host]:
    """The host, with nginx as it was after the test."""
    yield host
    host.lay()
    host.reload()


def verdicts(host: Host, **changes: Any) -> dict[str, Json]:
    """The checks by their names; the module itself never fails."""
    result = ansible_modules.call(service_checks, {**host.arguments(), **changes})
    assert (result["failed"], result["changed"]) == (False, False)
    found = {one["name"]: one for one in result["checks"]}
    assert len(found) == len(result["checks"])
    assert result["passed"] == all(one["ok"] for one in found.values())
    assert all(bool(one["mend"]) != one["ok"] and one["detail"] for one in found.values())
    return found


def red(host: Host, **changes: Any) -> dict[str, str]:
    """What failed, and why."""
    return {name: one["detail"] for name, one in verdicts(host, **changes).items() if not one["ok"]}


def test_a_host_that_serves_is_green(host: Host) -> None:
    through = f"echo through port {host.port}"
    assert {name: one["detail"] for name, one in verdicts(host).items()} == {
        "emperor of one": "running",
        "nginx": "running",
        "program of nginx": "the installed one",
        "open ports": f"nginx listens on {host.port} only",
        "closed ports": f"{USER} listens on nothing beyond loopback",
        "echo on one: vassal": host.vassals[0]["name"],
        "echo on one: workers": f"2 workers as {USER}",
        "echo on one: ready": "known answer on its own socket",
        f"{through}: known answer": "answered by one",
        f"{through}: errors": "404 Not Found, 413 Body Too Large, 405 Method Not Allowed",
    }
    assert verdicts(host, manager="systemd")["nginx"]["detail"] == "active, enabled"


# ---- units and ports


@pytest.mark.parametrize(
    ("manager", "command", "said", "detail"),
    [
        ("supervisor", "supervisorctl status", "X FATAL Exited too quickly", "{} is FATAL"),
        ("supervisor", "supervisorctl status", "X STOPPED Not started", "{} is STOPPED"),
        ("supervisor", "supervisorctl status", "", "{} is unknown to supervisor"),
        ("systemd", "systemctl is-active", "failed", "{} is failed and enabled"),
        ("systemd", "systemctl is-enabled", "disabled", "{} is active and disabled"),
    ],
)
def test_a_unit_that_does_not_run(host: Host, manager: str, command: str, said: str, detail: str) -> None:
    host.words[command] = said
    assert red(host, manager=manager) == {
        "emperor of one": detail.format("uwsgi-emperor@one"),
        "nginx": detail.format("nginx"),
    }


def test_an_nginx_that_was_upgraded_and_runs_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    master = int((host.fleet.folder / "nginx.pid").read_text())
    monkeypatch.setattr(service_checks, "program_changed", lambda pid: ["/usr/sbin/nginx"] if pid == master else [])
    assert red(host) == {"program of nginx": "nginx runs with /usr/sbin/nginx of before its upgrade"}


def test_a_port_that_is_closed(host: Host) -> None:
    (closed,) = processes.free_ports()
    services = host.arguments()["services"]
    services[0]["port"] = closed
    host.ports.add(closed)
    found = red(host, services=services)
    assert found.pop("open ports") == f"nginx does not listen on [{closed}]"
    assert [name for name, detail in found.items() if "Connection refused" in detail] == [
        f"echo through port {closed}: known answer",
        f"echo through port {closed}: errors",
    ]


def test_a_port_too_many(mended: Host) -> None:
    surplus = processes.free_ports(2)[1]
    mended.spoil("server_name _;", f"listen 127.0.0.1:{surplus}; server_name _;")
    mended.reload()
    mended.ports.add(surplus)
    assert red(mended) == {"open ports": f"nginx also listens on [{surplus}]"}


@pytest.mark.parametrize(("address", "outside"), [("0.0.0.0", True), ("127.0.0.1", False), ("127.1.2.3", False)])  # noqa: S104
def test_a_port_of_the_fleets_user_beyond_the_loopback(host: Host, address: str, outside: bool) -> None:
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        host.ports.add(port)
        expected = {"closed ports": f"processes of {USER} listen beyond loopback on [{port}]"} if outside else {}
        assert red(host) == expected


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("0100007F", True),
        ("00000000000000000000000001000000", True),
        ("00000000", False),
        ("0A01A8C0", False),
        ("0" * 32, False),
    ],
)
def test_loopback_addresses_as_the_kernel_writes_them(address: str, loopback: bool) -> None:
    assert listeners.Listener(address, port=80, uid=0, inode=1).loopback is loopback


# ---- vassals


def changed(host: Host, **values: Any) -> list[Json]:
    return [{**vassal, **values} for vassal in host.arguments()["vassals"]]


def test_a_vassal_that_the_inventory_asks_for_and_that_is_not_there(host: Host) -> None:
    assert red(host, vassals=changed(host, name="echo--r2-000000")) == {
        "echo on one: vassal": f"echo--r2-000000 is not there; {host.vassals[0]['name']} is. "
        "The inventory or the code changed since."
    }


def test_a_worker_that_is_missing(host: Host) -> None:
    assert red(host, vassals=changed(host, workers=3)) == {"echo on one: workers": "2 of 3 workers accept requests"}


def test_a_vassal_without_stats_is_red_when_it_should_have_them(host: Host) -> None:
    (detail,) = red(host, run_dir=str(host.fleet.folder / "none")).values()
    assert "No such file or directory" in detail


def test_workers_of_another_user(host: Host) -> None:
    found = red(host, user="nobody")
    assert set(found) == {"echo on one: workers"}
    assert found["echo on one: workers"].endswith(f"runs as {USER}, not as nobody")


def test_a_user_that_is_not_there(host: Host) -> None:
    assert set(red(host, user="no-such-user")) == {"closed ports", "echo on one: workers"}


def test_another_release_than_was_deployed(host: Host) -> None:
    assert red(host, release="r2") == {"echo on one: ready": "release r1 answers, r2 was deployed"}


def test_a_device_that_is_not_ready(host: Host) -> None:
    (detail,) = red(host, vassals=changed(host, ready_path="/nowhere")).values()
    assert detail.startswith("404: ")


def test_a_stopped_device(host: Host) -> None:
    """Its workers hang: nothing answers in time, neither on its own socket nor through nginx."""
    pids = [worker["pid"] for worker in host.fleet.stats(host.vassals[0])["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        found = red(host, timeout_seconds=1)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    through = f"echo through port {host.port}"
    assert set(found) == {"echo on one: ready", f"{through}: known answer", f"{through}: errors"}
    assert all("timed out" in detail for detail in found.values())


# ---- answers


def with_sample(host: Host, **sample: Any) -> list[Json]:
    services: list[Json] = host.arguments()["services"]
    services[0]["sample"].update(sample)
    return services


def test_a_wrong_answer(host: Host) -> None:
    assert red(host, services=with_sample(host, expect={"echo": "goodbye"})) == {
        f"echo through port {host.port}: known answer": "echo is 'hello', expected 'goodbye'"
    }


def test_an_answer_that_is_an_error(host: Host) -> None:
    (detail,) = red(host, services=with_sample(host, content_type="application/json")).values()
    assert detail.startswith("400: ")
    assert "unreadable-input" in detail


@pytest.mark.parametrize(
    ("old", "new", "check", "said"),
    [
        (
            "default_type application/problem+json;",
            "default_type application/json;",
            "errors",
            "content type 'application/json' instead of application/problem+json",
        ),
        ('"request_id":"$fleet_request_id"', '"x":1', "errors", "problem without ['request_id']"),
        ('"status":404', '"status":400', "errors", "problem without its status"),
        ("error_page 404 /.problem/404;", "", "errors", "content type 'text/html' instead of"),
        ("return 404;", "return 204;", "errors", "204 instead of 404"),
        (
            "add_header X-Request-ID $fleet_request_id always;",
            "",
            "known answer",
            "X-Request-ID fleet-verify-0001 came back as None",
        ),
        ("client_max_body_size 1m;", "client_max_body_size 0;", "errors", "timed out"),
        ("location = /v1/echo {", "location = /v1/other {", "known answer", "404: "),
    ],
)
def test_what_is_wrong_with_nginx(mended: Host, old: str, new: str, check: str, said: str) -> None:
    mended.spoil(old, new)
    mended.reload()
    found = red(mended, timeout_seconds=2)
    assert said in found[f"echo through port {mended.port}: {check}"]


def test_methods_are_the_business_of_an_app_of_ones_own(host: Host) -> None:
    services = host.arguments()["services"]
    assert (services[0]["app"], services[0]["images"]) == (True, False)
    services[0]["app"] = False
    assert "405" not in verdicts(host, services=services)[f"echo through port {host.port}: errors"]["detail"]


def test_a_service_of_images_has_to_refuse_other_bodies(host: Host) -> None:
    """The echo model takes anything, and is red for it when it is said to take images only."""
    services = host.arguments()["services"]
    services[0]["images"] = True
    (detail,) = red(host, services=services).values()
    assert detail.startswith("200 instead of 4") or detail.startswith("400 instead of 415")


def test_which_services_are_ours_and_which_take_images(host: Host) -> None:
    ocr = {"name": "ocr", "route": "/v1/parse", "model": "inference.models.ocr:OcrModel"}
    given = [
        ocr,
        {"name": "own", "route": "/own", "wsgi_file": "own.py"},
        {**ocr, "name": "cats", "port": 1, "model": "c:C"},
    ]
    found = host.fleet.roles.evaluate("services", CHECKED, services=given)
    assert [(one["app"], one["images"]) for one in found] == [(True, True), (False, False), (True, False)]
    assert found[0]["max_body_mib"] == 100


# ---- the report


def test_the_report_and_its_exit_code() -> None:
    good = {"name": "nginx", "ok": True, "detail": "running", "mend": ""}
    bad = {"name": "echo", "ok": False, "detail": "no answer", "mend": "./fleet deploy"}
    hosts: dict[str, Json] = {
        "a": {"__verify": {"checks": [good, good]}},
        "b": {"__verify": {"checks": [good, bad]}},
        "c": {},
        "d": {"__verify": {"failed": True, "msg": "unreachable"}},
        "watch": {"__verify_monitoring": {"checks": [bad]}},
        "both": {"__verify": {"checks": [good]}, "__verify_monitoring": {"checks": [good, good]}},
        "half": {"__verify": {"failed": True, "msg": "unreachable"}, "__verify_monitoring": {"checks": [good]}},
    }
    assert report.verify_report(hosts, ["a"])["exit"] == 0
    found = report.verify_report(hosts, ["a", "b"])
    assert (found["exit"], found["failures"]) == (1, ["b: echo: no answer"])
    assert "        mend: ./fleet deploy" in found["lines"]
    assert found["lines"][-1] == "3 of 4 checks passed"
    assert report.verify_report(hosts, ["both"])["lines"][-1] == "3 of 3 checks passed"
    assert report.verify_report(hosts, ["watch"])["failures"] == ["watch: echo: no answer"]
    for missing in ("c", "d", "half"):
        found = report.verify_report(hosts, ["a", "b", missing])
        assert (found["exit"], found["data"]["exit"]) == (2, 2)
        assert f"{missing}: could not be checked" in found["failures"]
        assert found["lines"][-1] == "3 of 4 checks passed, 1 of 3 hosts could not be checked"
    assert report.verify_failures([good, bad]) == "echo: no answer\n  mend: ./fleet deploy"
    assert report.verify_failures([good]) == ""


def released(**hosts: str) -> Json:
    good = {"name": "echo", "ok": True, "detail": "fine", "mend": ""}
    return {name: {"__verify": {"checks": [good]}, "fleet_release": {"id": release}} for name, release in hosts.items()}


def test_a_fleet_of_several_releases_is_red_although_each_host_is_well() -> None:
    """As a run leaves it that was killed between two batches."""
    hosts = released(a="r1", b="r2", c="r1")
    found = report.verify_report(hosts, list(hosts))
    assert found["exit"] == 1
    assert found["failures"] == ["fleet: one release: the hosts have 2 releases: r1 on a, c; r2 on b"]
    assert found["lines"][-3:-1] == [
        f"FAILED  {found['failures'][0].replace(': ', '  ', 1)}",
        f"        mend: {report.MEND_MIXTURE}",
    ]
    assert found["lines"][-1] == "3 of 4 checks passed"
    assert [one["ok"] for one in found["data"]["fleet"]] == [False]
    asked = report.verify_report(hosts, list(hosts), keep_mixed=True)
    assert (asked["exit"], asked["lines"][-1]) == (0, "4 of 4 checks passed")
    assert "2 releases, as asked: r1 on a, c; r2 on b" in asked["lines"][-2]


def test_a_fleet_of_one_release_is_said_to_be() -> None:
    hosts = {**released(a="r1", b="r1"), "edge1": {"__verify": {"checks": []}, "fleet_release": {"id": ""}}}
    found = report.verify_report(hosts, list(hosts))
    assert (found["exit"], found["lines"][-2]) == (0, "ok      fleet  one release: r1 on all 2 hosts")
    assert report.verify_report(hosts, ["a"])["data"]["fleet"] == [], "one host is no mixture"


def test_a_vassal_that_the_exporter_does_not_see_is_red() -> None:
    vassal = {"service": "echo", "device": "one", "release": "r1", "name": "echo--r1", "stats": True}
    # As prometheus_client writes it, with the labels in their alphabetical order.
    up = 'fleet_vassal_up{device="one",release="r1",service="echo"} %s\n'
    assert service_checks.is_up(up % "1.0", vassal)
    assert not service_checks.is_up(up % "0.0", vassal)
    assert not service_checks.is_up(up % "1.0", {**vassal, "release": "r2"})
    # What has no stats cannot be asked.
    assert service_checks.is_up("", {**vassal, "stats": False})


def test_a_port_without_the_metrics_that_should_be_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_checks, "EXPORTER_SECONDS", 0.1)
    found = red(host, services=[], ports=[host.port])
    assert found[f"metrics through port {host.port}"].startswith("404: ")
