"""What a teardown removes, what it leaves alone, and how it knows which packages were ours."""

import json
import pwd
from pathlib import Path
from typing import Any

import ansible_modules
import pytest

teardown = ansible_modules.load("modules", "fleet_teardown")
record = ansible_modules.load("modules", "package_record")

APT = """Reading package lists...
Building dependency tree...
The following additional packages will be installed:
  nginx-common python3.11-venv
Suggested packages:
  fcgiwrap nginx-doc
The following NEW packages will be installed:
  libfoo:i386 nginx nginx-common
  python3-venv python3.11-venv
The following packages will be upgraded:
  libssl3
1 upgraded, 5 newly installed, 0 to remove and 3 not upgraded.
Setting up nginx (1.22.1-9) ...
"""


# ---- packages


def test_what_apt_newly_installs() -> None:
    assert record.newly_installed(APT) == ["libfoo:i386", "nginx", "nginx-common", "python3-venv", "python3.11-venv"]
    assert record.newly_installed("0 upgraded, 0 newly installed") == []
    assert record.newly_installed("") == []
    # Cut off right behind the list.
    assert record.newly_installed("The following NEW packages will be installed:\n  nginx") == ["nginx"]


def test_what_was_installed_before_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "packages.json"
    options = {"output": APT, "path": str(path)}
    assert ansible_modules.run("package_record", options, check=True)["changed"]
    assert not path.exists()
    assert ansible_modules.run("package_record", options)["changed"]
    assert not ansible_modules.run("package_record", options)["changed"]
    more = {"output": "The following NEW packages will be installed:\n  keepalived\n", "path": str(path)}
    assert "keepalived" in ansible_modules.run("package_record", more)["installed"]
    assert json.loads(path.read_text())["installed"][:3] == ["keepalived", "libfoo:i386", "nginx"]
    path.write_text("{")
    assert ansible_modules.run("package_record", more)["installed"] == ["keepalived"]


# ---- the machine


class Manager:
    """Stands in for systemd: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def remove(self, name: str) -> None:
        self.told.append(f"remove {name}")

    def reread(self) -> None:
        self.told.append("reread")

    def ask(self, *arguments: str) -> tuple[int, str]:
        self.told.append(" ".join(arguments))
        return 0, ""


class Machine:
    """A tree of files that stands in for a machine's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder
        places = {"UNITS": "units", "PROGRAMS": "programs", "NGINX": "etc/nginx", "KEEPALIVED": "keepalived.conf"}
        # Without these the tests would clear folders of the machine that they run on.
        places |= {"WWW": "www", "LOGS": "log", "PRIVATE": "private", "MEASUREMENTS": "measurements"}
        for name, place in places.items():
            monkeypatch.setattr(teardown, name, folder / place)
        for place in ("units/multi-user.target.wants", "programs", "etc/nginx", "state", "opt/releases"):
            (folder / place).mkdir(parents=True)
        monkeypatch.setattr(teardown, "FOLDERS", (str(folder / "opt"),))
        monkeypatch.setattr(teardown, "STATE", str(folder / "state"))
        self.commands: list[tuple[str, ...]] = []
        self.answers: dict[str, str] = {}
        self.states: dict[str, str] = {}
        monkeypatch.setattr(teardown.Teardown, "command", lambda one, *words: self.run(words))
        monkeypatch.setattr(teardown.Teardown, "state", lambda one, name: self.states.get(name, ""))
        monkeypatch.setattr(teardown.Teardown, "leftovers", lambda one: iter(()))

    def run(self, words: tuple[str, ...]) -> str:
        self.commands.append(words)
        return next((said for start, said in self.answers.items() if " ".join(words).startswith(start)), "")

    def write(self, path: str, text: str = "") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def tear_down(self, *, really: bool = True, systemd: bool = True, user: str = "no-such-user") -> Any:
        one = teardown.Teardown(user, really=really)
        one.systemd, one.manager = systemd, Manager()
        one.run()
        return one

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_units_of_ours_go_and_others_stay(machine: Machine) -> None:
    machine.write("units/uwsgi-emperor@.service", "# Role emperor: x")
    machine.write("units/uwsgi-emperor@cpu0.service.d/device.conf")
    machine.write("units/fleet-prober.service", "# Role edge: x")
    machine.write("units/fleet-edge-apply.path", "# Role edge: x")
    machine.write("units/fleet-watch.service", "# Role watch: x")
    machine.write("units/fleet-logrotate.service", "# Role logs: x")
    machine.write("units/fleet-logrotate.timer", "# Role logs: x")
    machine.write("units/fleet-agent.service", "[Unit]\nDescription=osquery")
    machine.write("units/nginx.service.d/fleet.conf")
    for name in ("uwsgi-emperor@cpu0.service", "fleet-prober.service", "fleet-agent.service"):
        (machine.root / "units" / "multi-user.target.wants" / name).symlink_to("../x")
    done = machine.tear_down()
    assert done.manager.told[:6] == [
        "remove fleet-edge-apply.path",
        "remove fleet-logrotate.timer",
        "remove fleet-logrotate.service",
        "remove fleet-prober.service",
        "remove fleet-watch.service",
        "remove uwsgi-emperor@cpu0.service",
    ]
    assert machine.files() == ["units/fleet-agent.service", "units/multi-user.target.wants/fleet-agent.service"]
    assert not (machine.root / "units" / "nginx.service.d").exists()
    assert not (machine.root / "opt").exists()
    assert not (machine.root / "state").exists()


def test_a_drop_in_of_an_administrator_stays(machine: Machine) -> None:
    machine.write("units/nginx.service.d/fleet.conf")
    machine.write("units/nginx.service.d/fleet-sandbox.conf")
    machine.write("units/nginx.service.d/own.conf")
    machine.tear_down()
    assert machine.files() == ["units/nginx.service.d/own.conf"]


def test_the_former_nginx_conf_comes_back(machine: Machine) -> None:
    machine.write("etc/nginx/nginx.conf", "ours")
    machine.write("etc/nginx/nginx.conf.before-fleet", "theirs")
    machine.write("etc/nginx/upstreams/echo.conf")
    machine.write("etc/nginx/sites-available/echo.conf")
    machine.write("etc/nginx/sites-available/own.conf")
    placed = ["nginx.conf", "upstreams/echo.conf", "sites-available/echo.conf", "sites-enabled/echo.conf"]
    machine.write("state/nginx.json", json.dumps({"placed": placed}))
    machine.tear_down()
    assert machine.files() == ["etc/nginx/nginx.conf", "etc/nginx/sites-available/own.conf"]
    assert (machine.root / "etc/nginx/nginx.conf").read_text() == "theirs"


def test_a_keepalived_of_somebody_else_stays(machine: Machine) -> None:
    path = machine.write("keepalived.conf", "global_defs {}")
    assert "remove keepalived.service" not in machine.tear_down().manager.told
    assert path.exists()
    path.write_text("# Role edge: edge_virtual_address")
    assert "remove keepalived.service" in machine.tear_down().manager.told
    assert not path.exists()


def test_a_prometheus_of_ours_stops_and_one_that_was_here_goes_by_its_own_files(machine: Machine) -> None:
    machine.write("state/packages.json", json.dumps({"installed": ["prometheus", "prometheus-alertmanager"]}))
    machine.states = {"prometheus": "installed", "prometheus-alertmanager": "installed"}
    machine.answers = {"apt-get --simulate": "Remv prometheus [2.42]\nRemv prometheus-alertmanager [0.25]\n"}
    machine.write("measurements/metrics2/wal/1")
    for name in ("prometheus", "prometheus-alertmanager", "prometheus-node-exporter"):
        machine.write(f"units/{name}.service.d/fleet.conf", "# Role monitoring: x")
    machine.write("units/prometheus-node-exporter.service.d/own.conf")
    done = machine.tear_down()
    assert done.manager.told[:4] == [
        "remove prometheus.service",
        "remove prometheus-alertmanager.service",
        "reread",
        "restart prometheus-node-exporter.service",
    ]
    # The stand-in for dpkg still knows them, so their measurements stay.
    assert machine.files() == ["measurements/metrics2/wal/1", "units/prometheus-node-exporter.service.d/own.conf"]


def test_measurements_go_with_the_last_of_their_programs(machine: Machine) -> None:
    machine.write("measurements/metrics2/wal/1")
    one = teardown.Teardown("no-such-user", really=True)
    machine.states = {"prometheus-node-exporter": "installed"}
    one.remove_left_by_packages(["prometheus"])
    assert machine.files() == ["measurements/metrics2/wal/1"]
    machine.states = {}
    one.remove_left_by_packages(["nginx"])
    assert machine.files() == ["measurements/metrics2/wal/1"]
    one.remove_left_by_packages(["prometheus"])
    assert machine.files() == []


def test_only_packages_that_nothing_needs_are_purged(machine: Machine) -> None:
    machine.write("state/packages.json", json.dumps({"installed": ["nginx", "nginx-common", "python3-venv", "gone"]}))
    machine.states = {"nginx": "installed", "nginx-common": "config-files", "python3-venv": "installed"}
    machine.answers = {
        "apt-mark showmanual": "nginx\npython3-venv\n",
        "apt-get --simulate": "Remv other [1]\nRemv nginx [1.22] []\n",
    }
    done = machine.tear_down()
    # Marked as before, whatever the simulation says.
    assert machine.commands[1:4:2] == [
        ("apt-mark", "auto", "nginx", "python3-venv"),
        ("apt-mark", "manual", "nginx", "python3-venv"),
    ]
    assert machine.commands[-1][-3:] == ("purge", "nginx", "nginx-common")
    assert done.kept == ["packages that something else needs by now: python3-venv"]


def test_a_user_that_was_there_before_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = {"ours": teardown.HOME, "theirs": "/home/theirs"}
    entry = pwd.getpwuid(0)

    def getpwnam(name: str) -> Any:
        return type("Entry", (), {"pw_dir": homes[name], "pw_uid": entry.pw_uid})

    monkeypatch.setattr(teardown.pwd, "getpwnam", getpwnam)
    assert "whose home /home/theirs says" in machine.tear_down(user="theirs").kept[0]
    assert machine.commands == []
    machine.tear_down(user="ours")
    assert machine.commands == [("userdel", "ours")]


def test_programs_of_supervisor(machine: Machine) -> None:
    machine.write("programs/uwsgi-emperor@cpu0.conf", "; Role emperor: x")
    machine.write("programs/nginx.conf", "; Role nginx: x")
    machine.write("programs/fleet-watch.conf", "; Role watch: x")
    machine.write("programs/fleet-agent.conf", "[program:fleet-agent]")
    machine.write("programs/own.conf", "[program:own]")
    machine.write("programs/fleet-logrotate.conf", "; Role logs: x")
    done = machine.tear_down(systemd=False)
    assert done.manager.told == [
        "remove fleet-logrotate",
        "remove fleet-watch",
        "remove uwsgi-emperor@cpu0",
        "remove nginx",
        "reread",
    ]
    assert machine.files() == ["programs/fleet-agent.conf", "programs/own.conf"]


def test_a_check_removes_nothing_and_says_what_it_would(machine: Machine) -> None:
    machine.write("units/uwsgi-emperor@cpu0.service.d/device.conf")
    machine.write("etc/nginx/nginx.conf.before-fleet")
    machine.write("state/packages.json", json.dumps({"installed": ["nginx"]}))
    machine.states = {"nginx": "installed"}
    before = machine.files()
    done = machine.tear_down(really=False)
    assert (machine.files(), machine.commands, done.manager.told) == (before, [], [])
    said = " / ".join(done.did)
    for part in ("stopped uwsgi-emperor@cpu0.service", "put back", "purged nginx", f"removed {machine.root / 'opt'}"):
        assert part in said


def test_a_bare_machine_has_nothing_to_remove(machine: Machine) -> None:
    (machine.root / "opt" / "releases").rmdir()
    (machine.root / "opt").rmdir()
    (machine.root / "state").rmdir()
    done = machine.tear_down()
    assert (done.did, done.kept, machine.commands) == ([], [], [])


def test_the_real_module_on_a_machine_without_a_fleet_in_check_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "FOLDERS", ())
    monkeypatch.setattr(teardown, "STATE", str(tmp_path / "none"))
    for name in ("UNITS", "PROGRAMS", "NGINX", "KEEPALIVED", "PRIVATE"):
        monkeypatch.setattr(teardown, name, tmp_path / name)
    result = ansible_modules.call(teardown, {"user": "no-such-user"}, check=True)
    assert (result["changed"], result["did"], result["kept"]) == (False, [], [])
